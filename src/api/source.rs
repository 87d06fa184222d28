//! Where a request comes from: the peer, or what trusted proxies say about it.
use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;

use super::config::Config;

/// The other end of the connection, put into every request by the server.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The address failed credentials are counted by.
///
/// Behind trusted proxies it is the right-most address of `x-forwarded-for` that is not itself a trusted proxy; everything
/// to the left of it is the client's own claim.
pub(crate) fn source_address(peer: IpAddr, headers: &HeaderMap, config: &Config) -> IpAddr {
    let mut nearest = peer.to_canonical();
    let lines = headers.get_all("x-forwarded-for");
    // Part by part: a line with bytes in it that are no text must not take what a proxy added to it away.
    let claimed: Vec<&[u8]> = lines.iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).collect();
    for part in claimed.into_iter().rev() {
        if !config.trusts(nearest) {
            break;
        }
        match std::str::from_utf8(part).ok().and_then(|text| parse_address(text.trim())) {
            Some(address) => nearest = address.to_canonical(),
            None => break,
        }
    }
    nearest
}

/// An address with or without a port, as different proxies write it.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn source(peer: &str, forwarded: &[&str]) -> String {
        let config = Config { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..Config::default() };
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        source_address(peer.parse().unwrap(), &headers, &config).to_string()
    }

    #[test]
    fn a_direct_client_cannot_choose_its_address() {
        assert_eq!(source("203.0.113.7", &["198.51.100.1"]), "203.0.113.7");
    }

    #[test]
    fn behind_proxies_the_right_most_untrusted_address_counts() {
        assert_eq!(source("10.0.0.1", &["1.2.3.4, 198.51.100.1, 10.9.9.9"]), "198.51.100.1");
        assert_eq!(source("10.0.0.1", &["1.2.3.4", "198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(source("::ffff:10.0.0.1", &["[2001:db8::1]:80"]), "2001:db8::1");
    }

    #[test]
    fn a_line_spoilt_by_the_client_does_not_hide_what_a_proxy_added_to_it() {
        assert_eq!(source("10.0.0.1", &["1.2.3.4", "\u{e9}, 198.51.100.1"]), "198.51.100.1");
    }

    #[test]
    fn nonsense_from_a_proxy_leaves_the_nearest_known_address() {
        assert_eq!(source("10.0.0.1", &["unknown"]), "10.0.0.1");
        assert_eq!(source("10.0.0.1", &["1.2.3.4, \u{e9}"]), "10.0.0.1");
        assert_eq!(source("10.0.0.1", &[]), "10.0.0.1");
    }
}

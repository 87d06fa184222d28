//! Server-sent events, read from bytes as they arrive.

/// Collects bytes and gives back the data of each complete event.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    pending: Vec<u8>,
    data: Vec<String>,
}

impl EventReader {
    /// Takes bytes; returns the data of the events they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() && !self.data.is_empty() {
                events.push(std::mem::take(&mut self.data).join("\n"));
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push(data.strip_prefix(' ').unwrap_or(data).to_owned());
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_the_bytes_are_cut() {
        let stream = "data: {\"a\":\"é\"}\n\n: ping\n\ndata: one\r\ndata: two\r\n\r\ndata: [DONE]\n\n".as_bytes();
        for cut in 1..stream.len() {
            let mut reader = EventReader::default();
            let mut events = reader.push(&stream[..cut]);
            events.extend(reader.push(&stream[cut..]));
            assert_eq!(events, ["{\"a\":\"é\"}", "one\ntwo", "[DONE]"], "cut at {cut}");
        }
    }
}

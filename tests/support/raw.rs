//! Requests that no HTTP library would send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Writes bytes, then reads until the server closes the connection. Send `connection: close`.
pub(crate) async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that has heard enough may close while we are writing; its answer is there all the same.
    let _ = stream.write_all(request).await;
    read_all(&mut stream).await
}

/// Writes the first part and then nothing more, and reads what the server says to that.
pub(crate) async fn exchange_slowly(address: SocketAddr, beginning: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(beginning).await.unwrap();
    read_all(&mut stream).await
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("the server neither answered nor closed");
    String::from_utf8_lossy(&answer).into_owned()
}

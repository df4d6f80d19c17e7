//! A client of a guest's HTTP API, like any user's: one request over the Unix socket, one JSON
//! answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// An HTTP answer with JSON in it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// The JSON document in the body.
    pub body: Value,
}

impl Answer {
    /// Returns the document of a successful answer, or the whole answer as an error.
    pub fn success(self) -> Result<Value, String> {
        if (200..300).contains(&self.status) { Ok(self.body) } else { Err(format!("{self:?}")) }
    }
}

/// Sends a request to the process behind `socket`; `body` becomes the request's JSON.
///
/// # Errors
/// If no process listens on the socket, or the answer is not HTTP with JSON in it.
pub fn ask(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: lighter\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    // In one write: a server that refuses the request after its first line may close the connection
    // before it reads the rest.
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    parse(&text).ok_or_else(|| io::Error::other(format!("not an answer: {text:?}")))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: serde_json::from_str(body).ok()? })
}

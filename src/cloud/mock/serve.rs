//! HTTP/1.1, as much of it as the client speaks: one request a connection.

use super::{HOST, Mock};
use crate::cloud::http::Connector;
use crate::cloud::{Later, Stream};
use crate::error::{Error, Result};
use serde_json::Value;
use std::net::SocketAddrV4;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub struct Asked {
    pub port: u16,
    pub method: String,
    /// Without the query.
    pub path: Vec<String>,
    pub query: Vec<(String, String)>,
    pub token: Option<String>,
    pub microversion: Option<String>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
    pub fn wants(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

pub struct Answer {
    pub status: u16,
    pub token: Option<String>,
    pub body: Value,
}

impl Connector for Mock {
    fn connect(&self, to: SocketAddrV4, _: Duration) -> Later<'_, Result<Box<dyn Stream>>> {
        Box::pin(async move {
            if *to.ip() != HOST {
                return Err(Error::lab(format!("{to} is unreachable")));
            }
            let (near, far) = tokio::io::duplex(64 << 10);
            tokio::spawn(serve(self.clone(), to.port(), far));
            Ok(Box::new(near) as Box<dyn Stream>)
        })
    }
}

async fn serve(mock: Mock, port: u16, mut stream: DuplexStream) -> Option<()> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).ok()?;
    let header = |name: &str| {
        head.lines().find_map(|l| {
            let (key, value) = l.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let length: usize = header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = bytes.split_off(head_end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    let mut first = head.lines().next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pair = |p: &str| p.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    let asked = Asked {
        port,
        method,
        path: path.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect(),
        query: query.split('&').filter_map(pair).collect(),
        token: header("x-auth-token"),
        microversion: header("openstack-api-version"),
        body,
    };
    let answer = mock.with(|s| s.answer(&asked));
    let body = if answer.body.is_null() { String::new() } else { answer.body.to_string() };
    let mut text = format!("HTTP/1.1 {} Mock\r\ncontent-length: {}\r\n", answer.status, body.len());
    text += "x-openstack-request-id: req-mock\r\n";
    if let Some(token) = answer.token {
        text += &format!("x-subject-token: {token}\r\n");
    }
    text += "\r\n";
    text += &body;
    stream.write_all(text.as_bytes()).await.ok()
}

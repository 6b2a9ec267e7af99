//! One HTTP/1.1 request over any byte stream.
//!
//! A connection serves one request: the services' own work outweighs a handshake by far, and a
//! connection that was closed meanwhile is then no case to handle.

use super::url::Url;
use super::{Later, Stream};
use crate::error::{Error, Kind, Result};
use crate::event::Events;
use crate::lab::outside::Leg;
use crate::secret::{Redactor, Secret};
use crate::wait::{Death, Patience, Speed};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;
use tokio::io::AsyncRead;

pub use hyper::Method;

/// No answer that the proof asks for is longer.
const LONGEST_REPLY: usize = 16 << 20;
/// On the reference machine; scaled like every deadline.
const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(25);
/// How fast an image is taken in on the reference machine, at worst.
const UPLOAD_BYTES_PER_SECOND: u64 = 8 << 20;

/// Opens connections to the services.
pub trait Connector: Send + Sync {
    fn connect(&self, to: SocketAddrV4, timeout: Duration) -> Later<'_, Result<Box<dyn Stream>>>;
}

impl Connector for Leg {
    fn connect(&self, to: SocketAddrV4, timeout: Duration) -> Later<'_, Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let stream = Leg::connect(self, to, timeout).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// Sends requests. Cheap to clone.
#[derive(Clone)]
pub struct Http {
    connector: Arc<dyn Connector>,
    /// Addresses of the names that a catalogue may use: there is no name service outside.
    names: Arc<BTreeMap<String, Ipv4Addr>>,
    patience: Patience,
    death: Death,
    redactor: Redactor,
}

#[derive(Clone, Debug, Default)]
pub enum Body {
    #[default]
    Empty,
    Json(Value),
    /// Streamed as `application/octet-stream`.
    File(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    pub body: Body,
    pub token: Option<Secret>,
    /// `OpenStack-API-Version`, where a service has microversions.
    pub microversion: Option<&'static str>,
}

impl Request {
    pub fn get(url: Url, token: Option<Secret>) -> Request {
        Request { method: Method::GET, url, body: Body::Empty, token, microversion: None }
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn request_id(&self) -> Option<&str> {
        ["x-openstack-request-id", "x-compute-request-id"]
            .iter()
            .find_map(|name| self.headers.get(*name)?.to_str().ok())
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A request that was refused, or that got no answer. Holds no secret.
#[derive(Debug)]
pub struct ApiError {
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// None where no answer came; `cause` then says why.
    pub status: Option<u16>,
    /// The API's own words.
    pub message: String,
    pub request_id: Option<String>,
    pub cause: Option<Error>,
}

impl ApiError {
    pub fn is(&self, status: u16) -> bool {
        self.status == Some(status)
    }
    /// Whether asking again may help: nothing came back, or a proxy or a starting service spoke.
    pub fn is_passing(&self) -> bool {
        matches!(self.status, None | Some(502..=504))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.method, self.path)?;
        match self.status {
            Some(status) => write!(f, "{status}: {}", self.message)?,
            None => f.write_str(&self.message)?,
        }
        match &self.request_id {
            Some(id) => write!(f, " ({id})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

impl From<ApiError> for Error {
    fn from(e: ApiError) -> Error {
        let kind = e.cause.as_ref().map_or(Kind::Proof, Error::kind);
        let evidence = e.cause.iter().flat_map(|c| c.evidence_lines().to_vec()).collect::<Vec<_>>();
        let error = Error::new(kind, e.to_string()).evidence(evidence);
        match e.cause.as_ref().and_then(Error::cause) {
            Some(cause) => error.caused_by(cause),
            None => error,
        }
    }
}

impl Http {
    pub fn new(
        connector: Arc<dyn Connector>,
        names: BTreeMap<String, Ipv4Addr>,
        speed: Speed,
        death: Death,
        redactor: Redactor,
    ) -> Http {
        // Single requests are too many to be shown as waits; the waits they serve are shown.
        let patience = Patience::new(speed, Events::silent());
        Http { connector, names: Arc::new(names), patience, death, redactor }
    }

    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// Sends `request` and reads the whole reply; any status from 200 to 399 is an answer.
    pub async fn send(&self, request: &Request) -> Result<Reply, ApiError> {
        let fail = |status, message: &str, request_id: Option<&str>, cause| ApiError {
            method: request.method.clone(),
            path: request.url.path.clone(),
            status,
            message: self.redactor.clean(message),
            request_id: request_id.map(str::to_owned),
            cause,
        };
        let what = format!("{} {}", request.method, request.url);
        let nominal = nominal(&request.body).await;
        let reply = self.patience.within(&what, nominal, &self.death, self.exchange(request)).await;
        match reply {
            Err(e) => Err(fail(None, &e.to_string(), None, Some(e))),
            Ok(reply) if (200..400).contains(&reply.status) => Ok(reply),
            Ok(reply) => {
                Err(fail(Some(reply.status), &api_message(&reply.body), reply.request_id(), None))
            }
        }
    }

    fn address(&self, url: &Url) -> Result<SocketAddrV4> {
        let ip = match url.host.parse() {
            Ok(ip) => ip,
            Err(_) => *self.names.get(&url.host).ok_or_else(|| {
                Error::new(Kind::Proof, format!("no node is called `{}` ({url})", url.host))
                    .hint("endpoints must name a node of the lab, or an address")
            })?,
        };
        Ok(SocketAddrV4::new(ip, url.port))
    }

    async fn exchange(&self, request: &Request) -> Result<Reply> {
        let lab =
            |what: &str| Error::lab(format!("{what} {}:{}", request.url.host, request.url.port));
        let to = self.address(&request.url)?;
        let stream = self.connector.connect(to, self.patience.speed.scale(CONNECT)).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| lab("no HTTP connection to").because(e))?;
        let message = assemble(request).await?;
        let answer = async {
            let reply =
                sender.send_request(message).await.map_err(|e| lab("no answer from").because(e))?;
            let (head, body) = reply.into_parts();
            let body = Limited::new(body, LONGEST_REPLY)
                .collect()
                .await
                .map_err(|e| lab("the answer broke off from").because(e))?
                .to_bytes();
            Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::pin!(answer, connection);
        // The connection is driven here, not in a task of its own, so that nothing outlives a wait
        // that was cut off. Its own end is told by the answer.
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                _ = &mut connection, if open => open = false,
            }
        }
    }
}

async fn nominal(body: &Body) -> Duration {
    match body {
        Body::File(path) => {
            let bytes = tokio::fs::metadata(path).await.map(|m| m.len()).unwrap_or(0);
            REQUEST + Duration::from_secs(bytes / UPLOAD_BYTES_PER_SECOND)
        }
        _ => REQUEST,
    }
}

async fn assemble(request: &Request) -> Result<hyper::Request<BoxBody<Bytes, std::io::Error>>> {
    let target = if request.url.path.is_empty() { "/" } else { &request.url.path };
    let mut builder = hyper::Request::builder()
        .method(request.method.clone())
        .uri(target)
        .header(HOST, format!("{}:{}", request.url.host, request.url.port))
        .header(CONNECTION, "close")
        .header(ACCEPT, "application/json");
    if let Some(token) = &request.token {
        let mut value = HeaderValue::from_str(token.reveal())
            .map_err(|_| Error::internal("a token that cannot be sent"))?;
        value.set_sensitive(true);
        builder = builder.header("x-auth-token", value);
    }
    if let Some(version) = request.microversion {
        builder = builder.header("openstack-api-version", version);
    }
    let full = |b: Bytes| Full::new(b).map_err(|never| match never {}).boxed();
    let built = match &request.body {
        Body::Empty => builder.body(full(Bytes::new())),
        Body::Json(value) => builder
            .header(CONTENT_TYPE, "application/json")
            .body(full(Bytes::from(value.to_string()))),
        Body::File(path) => builder
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(FileBody::open(path).await?.boxed()),
    };
    built
        .map_err(|e| Error::internal(format!("a request that cannot be sent: {target}")).because(e))
}

/// A file as a body of known length, read as it is sent.
struct FileBody {
    file: tokio::fs::File,
    left: u64,
    buffer: Box<[u8]>,
}

impl FileBody {
    async fn open(path: &Path) -> Result<FileBody> {
        let gone = |e| Error::image("the image cannot be read").at(path, None).because(e);
        let file = tokio::fs::File::open(path).await.map_err(gone)?;
        let left = file.metadata().await.map_err(gone)?.len();
        Ok(FileBody { file, left, buffer: vec![0; 64 << 10].into() })
    }
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<std::io::Result<hyper::body::Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let this = &mut *self;
        let most = usize::try_from(this.left).unwrap_or(usize::MAX).min(this.buffer.len());
        let mut read = tokio::io::ReadBuf::new(&mut this.buffer[..most]);
        task::ready!(Pin::new(&mut this.file).poll_read(cx, &mut read))?;
        let got = read.filled();
        if got.is_empty() {
            return Poll::Ready(Some(Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "the image became shorter while it was sent",
            ))));
        }
        this.left -= got.len() as u64;
        Poll::Ready(Some(Ok(hyper::body::Frame::data(Bytes::copy_from_slice(got)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left)
    }
}

/// The API's own words in the body of a refusal: each service wraps them in its own way, and
/// proxies answer in HTML.
fn api_message(body: &[u8]) -> String {
    fn find(value: &Value) -> Option<&str> {
        let map = value.as_object()?;
        match map.get("message") {
            Some(Value::String(message)) => Some(message),
            _ => map.values().find_map(find),
        }
    }
    let text = String::from_utf8_lossy(body);
    let words = match serde_json::from_slice::<Value>(body) {
        Ok(json) => find(&json).map_or_else(|| json.to_string(), str::to_owned),
        Err(_) => without_tags(&text),
    };
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(600) {
        Some((end, _)) => format!("{} …", &words[..end]),
        None if words.is_empty() => "(no explanation)".into(),
        None => words,
    }
}

fn without_tags(html: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in html.chars() {
        match c {
            '<' => inside = true,
            '>' if inside => {
                inside = false;
                out.push(' ');
            }
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Answers every connection with `answer` once the whole request is in.
    struct Canned {
        answer: &'static str,
        seen: Arc<std::sync::Mutex<Vec<u8>>>,
    }

    impl Connector for Canned {
        fn connect(&self, _: SocketAddrV4, _: Duration) -> Later<'_, Result<Box<dyn Stream>>> {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let (answer, seen) = (self.answer, self.seen.clone());
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                loop {
                    let got = far.read(&mut buffer).await.unwrap_or(0);
                    if got == 0 {
                        return;
                    }
                    let all = {
                        let mut seen = seen.lock().unwrap();
                        seen.extend(&buffer[..got]);
                        String::from_utf8_lossy(&seen).into_owned()
                    };
                    let Some((head, body)) = all.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|l| {
                        l.to_lowercase().strip_prefix("content-length: ")?.parse().ok()
                    });
                    if body.len() >= length.unwrap_or(0) {
                        let _ = far.write_all(answer.as_bytes()).await;
                        return;
                    }
                }
            });
            Box::pin(async move { Ok(Box::new(near) as Box<dyn Stream>) })
        }
    }

    fn client(answer: &'static str, death: Death) -> (Http, Arc<std::sync::Mutex<Vec<u8>>>) {
        let seen = Arc::default();
        let canned = Canned { answer, seen: Arc::clone(&seen) };
        let names = BTreeMap::from([("ctl".to_owned(), Ipv4Addr::LOCALHOST)]);
        let redactor = Redactor::default();
        redactor.add(&Secret::new("s3cr3t-s3cr3t"));
        (Http::new(Arc::new(canned), names, Speed::new(1.0), death, redactor), seen)
    }

    fn get(url: &str) -> Request {
        let token = Some(Secret::new("s3cr3t-s3cr3t"));
        let microversion = Some("compute 2.79");
        Request { microversion, ..Request::get(Url::parse(url).unwrap(), token) }
    }

    #[tokio::test]
    async fn a_refusal_names_method_path_status_message_and_request_but_no_secret() {
        let (http, seen) = client(
            "HTTP/1.1 403 Forbidden\r\nx-openstack-request-id: req-7\r\ncontent-length: 72\r\n\r\n\
             {\"forbidden\": {\"message\": \"not with s3cr3t-s3cr3t, no.\", \"code\": 403  }}",
            Death::never(),
        );
        let e = http.send(&get("http://ctl:8774/v2.1/flavors?x=1")).await.unwrap_err();
        assert_eq!(e.to_string(), "GET /v2.1/flavors?x=1: 403: not with [secret], no. (req-7)");
        assert!(e.is(403) && !e.is_passing());
        let sent = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        assert!(sent.starts_with("GET /v2.1/flavors?x=1 HTTP/1.1\r\nhost: ctl:8774\r\n"), "{sent}");
        assert!(sent.contains("openstack-api-version: compute 2.79\r\n"));
        assert!(sent.contains("x-auth-token: s3cr3t-s3cr3t\r\n"));
    }

    #[tokio::test]
    async fn a_file_is_sent_whole_with_its_length() {
        let (http, seen) =
            client("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", Death::never());
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..200_000u32).map(|n| b'a' + (n % 26) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let mut request = get("http://ctl:9292/v2/images/1/file");
        request.method = Method::PUT;
        request.body = Body::File(file.path().into());
        assert_eq!(http.send(&request).await.unwrap().status, 204);
        let sent = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        let (head, body) = sent.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-length: 200000"), "{head}");
        assert!(head.contains("content-type: application/octet-stream"));
        assert!(body.as_bytes() == bytes);
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error_and_not_an_empty_answer() {
        let (http, _) =
            client("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half\":", Death::never());
        let e = http.send(&get("http://ctl:5000/v3")).await.unwrap_err();
        assert!(e.to_string().contains("broke off"), "{e}");
        assert!(e.is_passing());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline_and_a_death_at_once() {
        struct Mute;
        impl Connector for Mute {
            fn connect(&self, _: SocketAddrV4, _: Duration) -> Later<'_, Result<Box<dyn Stream>>> {
                Box::pin(std::future::pending())
            }
        }
        let (life, death) = crate::wait::Life::new();
        let http =
            Http::new(Arc::new(Mute), BTreeMap::new(), Speed::new(1.0), death, Redactor::default());
        let request = get("http://127.0.0.1:5000/v3");
        let e = http.send(&request).await.unwrap_err();
        assert!(e.to_string().contains("in vain"), "{e}");
        life.ends("openstack1: QEMU exited");
        let e = http.send(&request).await.unwrap_err();
        assert!(e.to_string().contains("QEMU exited"), "{e}");
    }

    #[tokio::test]
    async fn an_unknown_host_is_named() {
        let (http, _) = client("", Death::never());
        let e = http.send(&get("http://controller:5000/v3")).await.unwrap_err();
        assert!(e.to_string().contains("no node is called `controller`"), "{e}");
    }

    #[test]
    fn every_services_way_to_explain_is_understood() {
        for (body, message) in [
            (r#"{"error":{"code":401,"message":"Bad password","title":"x"}}"#, "Bad password"),
            (r#"{"NeutronError":{"type":"IpInUse","message":"in use","detail":""}}"#, "in use"),
            (
                "<html><head><title>403 Forbidden</title></head><body>no\n</body></html>",
                "403 Forbidden no",
            ),
            (r#"{"errors":[]}"#, r#"{"errors":[]}"#),
            ("", "(no explanation)"),
        ] {
            assert_eq!(api_message(body.as_bytes()), message);
        }
    }
}

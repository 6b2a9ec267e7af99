//! An HTTP proxy into the lab, on the host's loopback: with it the stock `openstack` client and a
//! browser work with the catalogue as it is, whose addresses are the lab's.
//!
//! Everybody on this machine reaches the loopback, so the proxy asks for a password; it leads to
//! addresses of the lab and nowhere else.

use super::forward::Way;
use crate::error::{Context, Error, Kind, Result};
use crate::secret::Secret;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

const USER: &str = "stackproof";

type Body = BoxBody<Bytes, hyper::Error>;

/// Serves until dropped.
#[derive(Debug)]
pub struct Proxy {
    /// With user and password.
    pub url: Secret,
    /// By itself: programs tell it so in their errors.
    pub password: Secret,
    task: AbortHandle,
}

impl Proxy {
    pub async fn start(way: Way) -> Result<Proxy> {
        let doing = || "cannot start the lab's proxy".to_owned();
        let password = Secret::generate(16).doing(Kind::Host, doing)?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = TcpListener::bind(any).await.doing(Kind::Host, doing)?;
        let at = listener.local_addr().doing(Kind::Host, doing)?;
        let wanted = BASE64_STANDARD.encode(format!("{USER}:{}", password.reveal()));
        let gate = Arc::new(Gate { way, wanted: Secret::new(format!("Basic {wanted}")) });
        let task = tokio::spawn(accept(listener, gate)).abort_handle();
        let url = Secret::new(format!("http://{USER}:{}@{at}", password.reveal()));
        Ok(Proxy { url, password, task })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Gate {
    way: Way,
    /// The value of `Proxy-Authorization`.
    wanted: Secret,
}

async fn accept(listener: TcpListener, gate: Arc<Gate>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(connection(stream, gate.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, gate: Arc<Gate>) {
    let service = hyper::service::service_fn(move |request| {
        let gate = gate.clone();
        async move { Ok::<_, Infallible>(gate.serve(request).await) }
    });
    let server = hyper::server::conn::http1::Builder::new();
    // What a client does wrong ends its own connection.
    let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

impl Gate {
    async fn serve(&self, request: Request<Incoming>) -> Response<Body> {
        let given = request.headers().get(PROXY_AUTHORIZATION);
        if given.is_none_or(|given| given.as_bytes() != self.wanted.reveal().as_bytes()) {
            let why = "this proxy leads into a lab and wants the password of `stackproof lab rc`";
            let mut reply = said(StatusCode::PROXY_AUTHENTICATION_REQUIRED, why);
            let realm = HeaderValue::from_static("Basic realm=\"stackproof lab\"");
            reply.headers_mut().insert(PROXY_AUTHENTICATE, realm);
            return reply;
        }
        let out = if request.method() == Method::CONNECT {
            self.tunnel(request).await
        } else {
            self.pass(request).await
        };
        out.unwrap_or_else(|e| {
            let status = match e.kind() {
                Kind::Input => StatusCode::FORBIDDEN,
                _ => StatusCode::BAD_GATEWAY,
            };
            let hint = e.hint_text().map(|h| format!("\n{h}")).unwrap_or_default();
            said(status, &format!("{e}{hint}"))
        })
    }

    async fn tunnel(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let (host, port) = authority(request.uri(), None)?;
        let mut far = (self.way)()?.dial(&host, port).await?;
        // Ends with either side. The owner's end is its own end too.
        tokio::spawn(async move {
            if let Ok(near) = hyper::upgrade::on(request).await {
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(near), &mut far).await;
            }
        });
        Ok(said(StatusCode::OK, ""))
    }

    async fn pass(&self, mut request: Request<Incoming>) -> Result<Response<Body>> {
        if request.uri().scheme_str() != Some("http") {
            return Err(Error::input(format!("`{}` is not a whole http:// URL", request.uri()))
                .hint("this is a proxy, not a server: set http_proxy to its address"));
        }
        let (host, port) = authority(request.uri(), Some(80))?;
        let doing = || format!("http://{host}:{port}");
        let far = (self.way)()?.dial(&host, port).await?;
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let path = path.parse::<Uri>().doing(Kind::Input, doing)?;
        let named = request.uri().authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        *request.uri_mut() = path;
        own_headers_only(request.headers_mut());
        let named = HeaderValue::from_str(&named).doing(Kind::Input, doing)?;
        request.headers_mut().insert(HOST, named);
        let io = TokioIo::new(far);
        let (mut sender, link) =
            hyper::client::conn::http1::handshake(io).await.doing(Kind::Lab, doing)?;
        // Ends with the exchange, whose handle is dropped with the answer's body.
        tokio::spawn(link);
        let mut reply = sender.send_request(request).await.doing(Kind::Lab, doing)?;
        own_headers_only(reply.headers_mut());
        Ok(reply.map(BodyExt::boxed))
    }
}

fn authority(uri: &Uri, default: Option<u16>) -> Result<(String, u16)> {
    let wrong = || Error::input(format!("`{uri}` names no host and port"));
    let authority = uri.authority().ok_or_else(wrong)?;
    let port = authority.port_u16().or(default).ok_or_else(wrong)?;
    Ok((authority.host().to_owned(), port))
}

/// Headers of one hop belong to that hop (RFC 9110, 7.6.1).
fn own_headers_only(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let always = ["keep-alive", "proxy-connection", "proxy-authenticate"];
    let always = always.map(HeaderName::from_static).into_iter();
    for name in always.chain([CONNECTION, PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE]).chain(named) {
        headers.remove(name);
    }
}

fn said(status: StatusCode, text: &str) -> Response<Body> {
    let text = if text.is_empty() { String::new() } else { format!("{text}\n") };
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_hop_go_and_all_others_stay() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("proxy-authorization", "Basic x"),
            ("keep-alive", "5"),
            ("x-auth-token", "t"),
            ("content-length", "3"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        own_headers_only(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "x-auth-token"]);
    }
}

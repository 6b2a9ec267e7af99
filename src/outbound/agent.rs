//! ureq with a proxy for plain HTTP as other clients use it.
//!
//! ureq itself opens a tunnel (CONNECT) for every request. Squid's default rules refuse a tunnel to
//! any port but 443; what proxies expect for `http://` is the request itself with the whole URL.

use super::proxy::ProxyUrl;
use ureq::config::Config;
use ureq::http::{Uri, uri::Scheme};
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, NextTimeout, RustlsConnector,
    SocksConnector, TcpConnector, Transport,
};
use ureq::{Agent, Error};

/// What an [`agent`] is made from. A proxy is set on each request.
pub fn agent_config() -> ureq::config::ConfigBuilder<AgentScope> {
    Agent::config_builder().proxy(None)
}

pub fn agent(config: Config) -> Agent {
    let forward = ForwardConnector { direct: config.clone() };
    let chain = forward
        .chain(SocksConnector::default())
        .chain(ConnectProxyConnector::default())
        .chain(TcpConnector::default())
        .chain(RustlsConnector::default());
    Agent::with_parts(config, chain, DefaultResolver::default())
}

/// Connects plain HTTP requests to their HTTP proxy.
#[derive(Debug)]
struct ForwardConnector {
    /// Leads to the proxy itself.
    direct: Config,
}

impl Connector for ForwardConnector {
    type Out = ForwardTransport;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<ForwardTransport>, Error> {
        let proxy = match details.config.proxy() {
            Some(proxy) if ProxyUrl::forwards(proxy) => proxy,
            _ => return Ok(None),
        };
        if details.uri.scheme() != Some(&Scheme::HTTP) {
            return Ok(None);
        }
        let uri = proxy.uri();
        let addrs = details.resolver.resolve(uri, &self.direct, details.timeout)?;
        let to_proxy = ConnectionDetails {
            uri,
            addrs,
            config: &self.direct,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let inner = (details.run_connector)(&to_proxy)?;
        Ok(Some(ForwardTransport { inner, target: details.uri.clone(), head_sent: false }))
    }
}

/// A connection to a proxy, on which one request is sent.
#[derive(Debug)]
struct ForwardTransport {
    inner: Box<dyn Transport>,
    target: Uri,
    head_sent: bool,
}

impl ForwardTransport {
    /// The head of a request with the whole URL in its first line.
    fn absolute(&self, head: &[u8]) -> Option<Vec<u8>> {
        let path = head.iter().position(|b| *b == b' ')? + 1;
        let authority = self.target.authority()?;
        let (method, rest) = head.split_at(path);
        if !rest.starts_with(b"/") {
            return None;
        }
        Some([method, b"http://", authority.as_str().as_bytes(), rest].concat())
    }
}

impl Transport for ForwardTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.head_sent {
            return self.inner.transmit_output(amount, timeout);
        }
        self.head_sent = true;
        let head = self.inner.buffers().output()[..amount].to_vec();
        let head = self.absolute(&head).unwrap_or(head);
        let output = self.inner.buffers().output();
        let Some(room) = output.get_mut(..head.len()) else {
            return Err(Error::Other("the request is too long".into()));
        };
        room.copy_from_slice(&head);
        self.inner.transmit_output(head.len(), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    /// Never used again: the next request has another URL.
    fn is_open(&mut self) -> bool {
        false
    }
}

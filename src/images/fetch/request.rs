//! One request to a server, with its redirects and proxies, and why it failed.

use super::url;
use super::{Failed, Options, REDIRECTS, Reason, answered, next};
use crate::error::Result;
use crate::event::Events;
use crate::outbound::{self, ProxyUrl};
use std::io;
use ureq::http::{Response, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

#[derive(Clone)]
pub(super) struct Requests {
    pub agent: Agent,
    pub options: Options,
    pub events: Events,
}

impl Requests {
    /// Where none of `urls` is HTTPS, missing root certificates are no error.
    pub fn new<'a>(
        options: &Options,
        mut urls: impl Iterator<Item = &'a str>,
        events: &Events,
    ) -> Result<Requests> {
        let roots = match options.roots.load() {
            Ok(roots) => roots,
            Err(e) if urls.any(|url| url.starts_with("https:")) => return Err(e),
            Err(_) => RootCerts::WebPki,
        };
        let config = outbound::agent_config()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .http_status_as_error(false)
            // Followed here: each hop is checked and the range goes along.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("stackproof/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(options.connect))
            .timeout_connect(Some(options.connect))
            .timeout_recv_response(Some(options.stall))
            .timeout_per_read(Some(options.stall))
            .timeout_per_write(Some(options.stall))
            .build();
        let (options, events) = (options.clone(), events.clone());
        Ok(Requests { agent: outbound::agent(config), options, events })
    }

    /// One request, with its redirects.
    pub fn get(&self, url: &str, range: Option<(u64, &str)>) -> Result<Response<Body>, Failed> {
        let mut at = url.to_owned();
        for _ in 0..=REDIRECTS {
            let proxy = self.options.proxies.for_url(&at);
            let to_ureq = proxy.map(ProxyUrl::to_ureq);
            let mut request = self.agent.get(&at).config().proxy(to_ureq).build();
            if let Some(authorization) = proxy.and_then(ProxyUrl::authorization)
                && at.starts_with("http:")
            {
                request = request.header(header::PROXY_AUTHORIZATION, authorization);
            }
            if let Some((have, validator)) = range {
                request = request
                    .header(header::RANGE, format!("bytes={have}-"))
                    .header(header::IF_RANGE, validator);
            }
            let response = request.call().map_err(|e| Failed::Next(self.unreachable(&at, &e)))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let Some(location) = response.headers().get(header::LOCATION) else {
                return next(format!("{} without a Location", answered(response.status())));
            };
            let location = url::encoded(location.as_bytes());
            at = url::follow(&at, &location).or_else(next)?;
            self.events.detail(format!("{url} redirects to {}", url::shown(&at)));
        }
        next(format!("it redirects more than {REDIRECTS} times"))
    }

    /// ` through the proxy …`, where one leads to `url`.
    pub fn through(&self, url: &str) -> String {
        let proxy = self.options.proxies.for_url(url);
        proxy.map(|proxy| format!(" (through the proxy {proxy})")).unwrap_or_default()
    }

    /// Why an address gave no answer at all.
    fn unreachable(&self, url: &str, e: &ureq::Error) -> Reason {
        let reason = Reason::from(format!("{}{}", self.explain(e), self.through(url)));
        match e {
            ureq::Error::Io(e) if is_untrusted(e) => reason.hint(self.options.roots.advice()),
            ureq::Error::Io(e) if is_hangup(e.kind()) => reason.passing(None),
            ureq::Error::Protocol(_) => reason,
            _ if self.options.proxies.for_url(url).is_some() => reason.hint(
                "the proxy comes from http_proxy, https_proxy or all_proxy: is it right? no_proxy \
                 names hosts that are reached without it",
            ),
            _ => reason,
        }
    }

    pub fn explain(&self, e: &ureq::Error) -> String {
        match e {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                format!("it was not reached within {} s", self.options.connect.as_secs_f32())
            }
            ureq::Error::Timeout(_) => {
                format!("no byte came for {} s", self.options.stall.as_secs_f32())
            }
            ureq::Error::HostNotFound => "its name does not resolve".into(),
            e => e.to_string(),
        }
    }
}

/// A server that hangs up before it answers is restarting, or out of breath.
fn is_hangup(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Whether TLS failed because nothing here vouches for the server's certificate.
fn is_untrusted(e: &io::Error) -> bool {
    let inner = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

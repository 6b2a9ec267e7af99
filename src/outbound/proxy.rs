//! Which proxy a URL is fetched through.

use crate::error::{Error, Result};
use hyper_util::client::proxy::matcher::Matcher;
use std::fmt;
use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

/// The proxies of the environment, by the scheme of what is fetched.
#[derive(Clone, Debug, Default)]
pub struct ProxySettings {
    pub http: Option<ProxyUrl>,
    pub https: Option<ProxyUrl>,
    /// As curl reads it: names with their subdomains, addresses, CIDR networks, `*`.
    pub no_proxy: String,
}

impl ProxySettings {
    /// The proxy that leads to `url`, if one does.
    pub fn for_url(&self, url: &str) -> Option<&ProxyUrl> {
        let target: Uri = url.parse().ok()?;
        let proxy = match target.scheme_str() {
            Some("https") => self.https.as_ref(),
            _ => self.http.as_ref(),
        };
        // The matcher takes `*` for names alone.
        if self.no_proxy.split(',').any(|entry| entry.trim() == "*") {
            return None;
        }
        // Only its rules for `no_proxy` are wanted: the proxy here is any.
        let matcher = Matcher::builder().all("http://any").no(self.no_proxy.as_str()).build();
        matcher.intercept(&target).and(proxy)
    }
}

/// The URL of a proxy, found to be one. Shown without its password.
#[derive(Clone)]
pub struct ProxyUrl(Proxy);

impl ProxyUrl {
    /// `name` is the variable that it comes from.
    pub fn parse(name: &str, url: &str) -> Result<ProxyUrl> {
        let wrong = || {
            let hint = "it looks like http://proxy.example.org:3128 or socks5h://localhost:1080";
            Error::input(format!("`{name}` is not the URL of a proxy")).hint(hint)
        };
        let proxy = Proxy::new(url).map_err(|_| wrong())?;
        match proxy.host() {
            "" => Err(wrong()),
            _ => Ok(ProxyUrl(proxy)),
        }
    }

    pub(super) fn inner(&self) -> &Proxy {
        &self.0
    }

    /// For a request.
    pub fn to_ureq(&self) -> Proxy {
        self.0.clone()
    }

    /// Whether it takes plain HTTP requests as they are, so that no tunnel is needed.
    pub fn forwards(proxy: &Proxy) -> bool {
        matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https)
    }

    /// The value of `Proxy-Authorization`, where it asks for a password.
    pub fn authorization(&self) -> Option<String> {
        use base64::Engine;
        let user = self.0.username()?;
        let plain = format!("{user}:{}", self.0.password().unwrap_or_default());
        Some(format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(plain)))
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proxy = self.inner();
        write!(
            f,
            "{}://{}:{}",
            proxy.uri().scheme_str().unwrap_or("http"),
            proxy.host(),
            proxy.port()
        )
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_is_heeded_as_curl_does() {
        let proxy = ProxyUrl::parse("http_proxy", "http://p:1").unwrap();
        for (no_proxy, url, direct) in [
            ("localhost, 127.0.0.1", "http://127.0.0.1:8801/ok", true),
            ("127.0.0.0/8", "http://127.0.0.1:8801/ok", true),
            ("10.0.0.0/8", "http://127.0.0.1:8801/ok", false),
            ("example.org", "http://images.example.org/x", true),
            (".example.org", "http://example.org/x", true),
            ("example.org", "http://notexample.org/x", false),
            ("*", "http://anywhere/", true),
            ("near, *", "http://127.0.0.1/", true),
            ("fd00::/8", "http://[fd00::1]/x", true),
            ("", "http://anywhere/", false),
        ] {
            let http = Some(proxy.clone());
            let settings = ProxySettings { http, https: None, no_proxy: no_proxy.into() };
            assert_eq!(settings.for_url(url).is_none(), direct, "{no_proxy}: {url}");
        }
    }

    #[test]
    fn the_password_is_sent_and_never_shown() {
        let proxy = ProxyUrl::parse("http_proxy", "http://me:s%20cret@p:3128").unwrap();
        assert_eq!(proxy.authorization().unwrap(), "Basic bWU6cyBjcmV0");
        assert_eq!(format!("{proxy} {proxy:?}"), "http://p:3128 http://p:3128");
    }
}

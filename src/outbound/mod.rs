//! How this process reaches the Internet: through which proxy, and whose certificates it believes.
//! The environment decides both, as it does for curl. Pure data: `cli` alone reads the environment.

mod agent;
mod proxy;
mod roots;

pub use agent::{agent, agent_config};
pub use proxy::{ProxySettings, ProxyUrl};
pub use roots::RootSource;

/// Set by a lab's openrc: the URL of the lab's own proxy, which reaches the lab only.
pub const LAB_PROXY: &str = "STACKPROOF_LAB_PROXY";
/// What `http_proxy` and `no_proxy` were before that.
pub const OUTER_PROXY: &str = "STACKPROOF_OUTER_PROXY";
pub const OUTER_NO_PROXY: &str = "STACKPROOF_OUTER_NO_PROXY";

/// The environment's variables that matter here, as they stand.
#[derive(Clone, Debug, Default)]
pub struct OutboundVariables {
    http: Option<String>,
    https: Option<String>,
    all: Option<String>,
    no_proxy: Option<String>,
    /// Whether `http` and `no_proxy` stand in for those of a lab's openrc.
    lab_skipped: bool,
    roots: RootSource,
}

impl OutboundVariables {
    /// `variable` gives a variable of the environment.
    pub fn read(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> OutboundVariables {
        let get = |name: &str| {
            let value = variable(name)?.to_string_lossy().trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let either = |lower: &str| get(lower).or_else(|| get(&lower.to_uppercase()));
        // A CGI program's HTTP_PROXY comes from the `Proxy:` header of its client.
        let is_cgi = get("REQUEST_METHOD").is_some();
        let http = if is_cgi { get("http_proxy") } else { either("http_proxy") };
        let lab_skipped = http.is_some() && http == get(LAB_PROXY);
        let (http, no_proxy) = match lab_skipped {
            true => (get(OUTER_PROXY), get(OUTER_NO_PROXY)),
            false => (http, either("no_proxy")),
        };
        let path = |name: &str| variable(name).filter(|v| !v.is_empty()).map(Into::into);
        OutboundVariables {
            http,
            https: either("https_proxy"),
            all: either("all_proxy"),
            no_proxy,
            lab_skipped,
            roots: RootSource { file: path("SSL_CERT_FILE"), dir: path("SSL_CERT_DIR") },
        }
    }

    pub fn roots(&self) -> &RootSource {
        &self.roots
    }

    /// The proxies, or which variable is wrong.
    pub fn proxies(&self) -> crate::error::Result<ProxySettings> {
        let parse = |name, value: &Option<String>| {
            value.as_deref().map(|url| ProxyUrl::parse(name, url)).transpose()
        };
        let all = parse("all_proxy", &self.all)?;
        Ok(ProxySettings {
            http: parse("http_proxy", &self.http)?.or_else(|| all.clone()),
            https: parse("https_proxy", &self.https)?.or(all),
            no_proxy: self.no_proxy.clone().unwrap_or_default(),
        })
    }

    /// What a program that we start must see instead of a lab's own proxy.
    pub fn for_programs(&self) -> Vec<(&'static str, String)> {
        if !self.lab_skipped {
            return Vec::new();
        }
        let value = |of: &Option<String>| of.clone().unwrap_or_default();
        vec![
            ("http_proxy", value(&self.http)),
            ("HTTP_PROXY", value(&self.http)),
            ("no_proxy", value(&self.no_proxy)),
            ("NO_PROXY", value(&self.no_proxy)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> OutboundVariables {
        OutboundVariables::read(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into())
        })
    }

    fn via(variables: &[(&str, &str)], url: &str) -> Option<String> {
        read(variables).proxies().unwrap().for_url(url).map(ToString::to_string)
    }

    #[test]
    fn each_scheme_has_its_variable_and_all_proxy_is_last() {
        let all = [("http_proxy", "http://h:1"), ("all_proxy", "socks5://s:2")];
        assert_eq!(via(&all, "http://x/").as_deref(), Some("http://h:1"));
        assert_eq!(via(&all, "https://x/").as_deref(), Some("socks5://s:2"));
        assert_eq!(via(&[("HTTPS_PROXY", "h:1")], "https://x/").as_deref(), Some("http://h:1"));
        assert_eq!(via(&[("https_proxy", "h:1")], "http://x/"), None);
        assert_eq!(via(&[("http_proxy", "")], "http://x/"), None);
        let cgi = [("HTTP_PROXY", "http://evil:1"), ("REQUEST_METHOD", "GET")];
        assert_eq!(via(&cgi, "http://x/"), None);
    }

    #[test]
    fn the_proxy_of_a_lab_is_not_for_downloads() {
        let lab = [("http_proxy", "http://u:p@127.0.0.1:9"), (LAB_PROXY, "http://u:p@127.0.0.1:9")];
        assert_eq!(via(&lab, "http://x/"), None);
        let programs = read(&lab).for_programs();
        assert!(programs.contains(&("http_proxy", String::new())), "{programs:?}");
        let mut outer = lab.to_vec();
        outer.extend([(OUTER_PROXY, "http://squid:3128"), (OUTER_NO_PROXY, "near")]);
        assert_eq!(via(&outer, "http://x/").as_deref(), Some("http://squid:3128"));
        assert_eq!(via(&outer, "http://near/"), None);
        let other = [("http_proxy", "http://other:1"), (LAB_PROXY, "http://u:p@127.0.0.1:9")];
        assert_eq!(via(&other, "http://x/").as_deref(), Some("http://other:1"));
        assert!(read(&other).for_programs().is_empty());
    }

    #[test]
    fn a_wrong_variable_is_named_without_its_password() {
        for (name, value) in [
            ("http_proxy", "http://[bad"),
            ("https_proxy", "gopher://me:hunter22@x"),
            ("all_proxy", "http://me:hunter22@"),
        ] {
            let e = read(&[(name, value)]).proxies().unwrap_err();
            assert_eq!(e.kind(), crate::error::Kind::Input);
            assert!(e.to_string().contains(name) && !e.to_string().contains("hunter22"), "{e}");
        }
    }
}

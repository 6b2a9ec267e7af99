//! The little of URLs that a service catalogue needs: `http://host[:port][/path]`.

use crate::error::{Error, Kind, Result};
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub host: String,
    pub port: u16,
    /// Empty, or begins with `/` and does not end with one.
    pub path: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Url> {
        let wrong = |why: &str| Error::new(Kind::Proof, format!("endpoint `{text}`: {why}"));
        let rest = text.strip_prefix("http://").ok_or_else(|| {
            wrong("only http:// is spoken here").hint("register the endpoint with an http:// URL")
        })?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => {
                (host, port.parse().map_err(|_| wrong("the port is not a number"))?)
            }
            None => (authority, 80),
        };
        if host.is_empty() || host.contains('@') || path.contains(char::is_whitespace) {
            return Err(wrong("it names no plain host"));
        }
        Ok(Url { host: host.into(), port, path: path.trim_end_matches('/').into() })
    }

    /// `path` (with its query) below this URL. `path` begins with `/`.
    pub fn join(&self, path: &str) -> Url {
        Url { path: format!("{}{path}", self.path), ..self.clone() }
    }

    /// This URL with the API's version in its path: catalogues have it for some services and not
    /// for others.
    pub fn versioned(&self, version: &str) -> Url {
        let is_version = |s: &str| {
            s.strip_prefix('v').is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
        };
        if self.path.split('/').any(is_version) {
            return self.clone();
        }
        self.join(&format!("/{version}"))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// Percent-encodes one value of a query.
pub fn query_value(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                (b as char).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_url_is_taken_apart_and_put_together() {
        let u = Url::parse("http://openstack1:5000/v3/").unwrap();
        assert_eq!((u.host.as_str(), u.port, u.path.as_str()), ("openstack1", 5000, "/v3"));
        assert_eq!(
            u.join("/projects?name=x").to_string(),
            "http://openstack1:5000/v3/projects?name=x"
        );
        assert_eq!(Url::parse("http://h").unwrap().port, 80);
    }

    #[test]
    fn a_version_is_added_only_where_it_is_missing() {
        let v = |u: &str, v: &str| Url::parse(u).unwrap().versioned(v).path;
        assert_eq!(v("http://h:9292", "v2"), "/v2");
        assert_eq!(v("http://h:9696/v2.0", "v2.0"), "/v2.0");
        assert_eq!(v("http://h:8774/v2.1/abc", "v2.1"), "/v2.1/abc");
        assert_eq!(v("http://h/volumes", "v3"), "/volumes/v3");
    }

    #[test]
    fn what_cannot_be_spoken_to_is_refused_with_the_url_in_the_message() {
        for bad in ["https://h:5000/v3", "http://:5000", "http://h:port/", "ftp://h"] {
            assert!(Url::parse(bad).unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(query_value("a b&c/é"), "a%20b%26c%2F%C3%A9");
    }
}

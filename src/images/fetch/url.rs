//! Where a redirect leads, and what of a URL may be shown.

/// The URL that `location` means on the page `from`. Refuses to leave HTTPS (the digest would find
/// a changed file, but what is fetched is nobody's business) and anything that is not HTTP.
pub fn follow(from: &str, location: &str) -> Result<String, String> {
    let location = location.split('#').next().unwrap_or_default().trim();
    if location.is_empty() {
        return Err("it redirects to nowhere".into());
    }
    let (scheme, rest) = from.split_once("://").unwrap_or(("http", from));
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let to = if let Some(scheme) = scheme_of(location) {
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(format!("it redirects to `{scheme}:`, which is not HTTP"));
        }
        // The scheme in lower case: comparisons below and elsewhere rely on it.
        format!("{}{}", scheme.to_ascii_lowercase(), &location[scheme.len()..])
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{path}{location}")
    } else {
        let folder = &path[..path.rfind('/').map_or(0, |at| at + 1)];
        let folder = if folder.is_empty() { "/" } else { folder };
        format!("{scheme}://{authority}{}", without_dots(&format!("{folder}{location}")))
    };
    let host = to.split_once("://").map(|(_, r)| r.split(['/', '?']).next().unwrap_or_default());
    match host {
        None | Some("") => Err("it redirects to a URL without a host".into()),
        Some(host) if host.contains('@') => {
            Err("it redirects to a URL with a user name in it".into())
        }
        Some(_) if scheme == "https" && to.starts_with("http:") => Err(format!(
            "it redirects from https to plain {}; give that mirror, or one that stays with \
                 https, as a `url` or in `mirrors`",
            shown(&to)
        )),
        Some(_) => Ok(to),
    }
}

/// A Location as it came, made a URL that may be asked for: bytes that a URL cannot hold (blanks, raw
/// UTF-8) are percent-encoded, as curl and browsers do.
pub fn encoded(location: &[u8]) -> String {
    let location = location.trim_ascii();
    let mut out = String::with_capacity(location.len());
    for &byte in location {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                out.push_str(&format!("%{byte:02X}"));
            }
            0x21..=0x7e => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The URL without its query: redirects to object stores carry signatures there.
pub fn shown(url: &str) -> String {
    match url.split_once(['?', '#']) {
        Some((start, _)) => format!("{start}?…"),
        None => url.to_owned(),
    }
}

fn scheme_of(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_once(':')?;
    let fine = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(fine))
        .then_some(scheme)
}

fn without_dots(path: &str) -> String {
    let (path, query) = match path.find('?') {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}{query}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_of_every_form_are_resolved() {
        let from = "https://images.example.org/a/b.img?x=1";
        for (location, to) in [
            ("https://cdn.example.org/c?sig=1#f", "https://cdn.example.org/c?sig=1"),
            ("HTTPS://cdn.example.org/c", "https://cdn.example.org/c"),
            ("//cdn.example.org/c", "https://cdn.example.org/c"),
            ("/c", "https://images.example.org/c"),
            ("c?y=1", "https://images.example.org/a/c?y=1"),
            ("../c/./d", "https://images.example.org/c/d"),
            ("../../../c", "https://images.example.org/c"),
            ("?y=2", "https://images.example.org/a/b.img?y=2"),
        ] {
            assert_eq!(follow(from, location).as_deref(), Ok(to), "{location}");
        }
        assert_eq!(follow("http://h", "c").as_deref(), Ok("http://h/c"));
        assert_eq!(follow("http://h", "/c").as_deref(), Ok("http://h/c"));
    }

    #[test]
    fn blanks_and_raw_utf8_are_encoded() {
        assert_eq!(encoded(" /my image.qcow2 ".as_bytes()), "/my%20image.qcow2");
        assert_eq!(encoded("/é".as_bytes()), "/%C3%A9");
        assert_eq!(encoded(b"http://h:1/a%20b?x=[1]&y#f"), "http://h:1/a%20b?x=[1]&y#f");
    }

    #[test]
    fn http_may_become_https_but_not_the_other_way() {
        assert!(follow("http://a/x", "https://b/y").is_ok());
        let e = follow("https://a/x", "HTTP://b/y?secret").unwrap_err();
        assert!(e.contains("plain http://b/y") && !e.contains("secret"), "{e}");
        assert!(e.contains("`mirrors`"), "{e}");
    }

    #[test]
    fn what_is_not_http_or_names_a_user_is_refused() {
        for location in ["ftp://b/y", "file:///etc/shadow", "javascript:x", "", "#x", "http:///y"] {
            assert!(follow("http://a/x", location).is_err(), "{location}");
        }
        let e = follow("http://a/x", "http://me:hunter22@b/y").unwrap_err();
        assert!(!e.contains("hunter22"), "{e}");
    }

    #[test]
    fn queries_are_not_shown() {
        assert_eq!(shown("http://a/x?sig=s3cret#f"), "http://a/x?…");
        assert_eq!(shown("http://a/x"), "http://a/x");
    }
}

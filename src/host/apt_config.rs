//! Where the host's apt gets Debian from. Both formats are read: one line a source
//! (`/etc/apt/sources.list`, `*.list`) and deb822 (`*.sources`).
//!
//! No mirror's name is written anywhere in stackproof: this is where it comes from, unless the
//! user gives one.

use super::tool::Tool;
use std::path::Path;

/// One enabled binary source of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub uris: Vec<String>,
    pub suites: Vec<String>,
    pub components: Vec<String>,
    /// A keyring's path, where one is named. A key written out in place is not kept.
    pub signed_by: Option<String>,
}

/// The mirrors from which Debian is installed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrors {
    /// Of the archive itself, without a slash at its end.
    pub archive: String,
    /// Of its security updates, where the host has one.
    pub security: Option<String>,
}

impl Mirrors {
    /// A mirror that the user gave.
    pub fn given(archive: &str) -> Mirrors {
        Mirrors { archive: archive.trim_end_matches('/').to_owned(), security: None }
    }

    /// Those of an apt configuration (`/etc/apt`), if it has a Debian archive.
    pub fn of_apt(etc_apt: &Path) -> Option<Mirrors> {
        Mirrors::among(&read(etc_apt))
    }

    /// Picks by path and suite: `…/debian` with a suite that is a release, and
    /// `…/debian-security`. A derivative's archive or a third party's is not taken for Debian's.
    pub fn among(sources: &[Source]) -> Option<Mirrors> {
        let find = |last: &str, security: bool| {
            sources.iter().find_map(|s| {
                let of_kind = |suite: &String| {
                    (suite.ends_with("-security") || suite.ends_with("/updates")) == security
                };
                if !s.suites.iter().any(of_kind) || !s.components.iter().any(|c| c == "main") {
                    return None;
                }
                let uris = s.uris.iter().map(|u| u.trim_end_matches('/'));
                uris.filter(|u| ["http://", "https://"].iter().any(|p| u.starts_with(p)))
                    .find(|u| u.rsplit('/').next() == Some(last))
                    .map(str::to_owned)
            })
        };
        Some(Mirrors { archive: find("debian", false)?, security: find("debian-security", true) })
    }
}

/// How the host's apt reaches mirrors: its options for proxies, ready for another configuration.
pub async fn proxy_options() -> Vec<String> {
    // A host without apt has no such options.
    let dump = Tool::new("apt-config").arg("dump").output().await.unwrap_or_default();
    proxies_of(&dump)
}

/// The same as variables, which apt heeds where its configuration names no proxy. A proxy that is for
/// one host, or that a script finds, is not among them.
pub async fn proxy_variables() -> Vec<(&'static str, String)> {
    variables_of(&proxy_options().await)
}

fn variables_of(options: &[String]) -> Vec<(&'static str, String)> {
    let value = |scheme: &str| {
        let key = format!("Acquire::{scheme}::Proxy ");
        let value = options.iter().find_map(|o| o.strip_prefix(&key))?;
        let value = value.trim_end_matches(';').trim_matches('"');
        // apt's word for none.
        Some(if value == "DIRECT" { String::new() } else { value.to_owned() })
    };
    let names = [("http", "http_proxy"), ("https", "https_proxy")];
    names.into_iter().filter_map(|(scheme, name)| Some((name, value(scheme)?))).collect()
}

/// Of `apt-config dump`: `Acquire::http::Proxy "http://proxy:3142";`, also by host, and the script
/// that finds a proxy.
fn proxies_of(dump: &str) -> Vec<String> {
    let is_proxy = |line: &&str| {
        let key = line.split([' ', '"']).next().unwrap_or_default().to_ascii_lowercase();
        let key = key.strip_prefix("acquire::").unwrap_or_default();
        ["http::proxy", "https::proxy"].iter().any(|p| key.starts_with(p))
    };
    // An empty value is the root of a tree, or a setting that was cleared.
    dump.lines().filter(is_proxy).filter(|l| !l.contains("\"\"")).map(str::to_owned).collect()
}

/// Every enabled binary source below `etc_apt`. What cannot be read is left out: apt itself says
/// what is wrong with it.
pub fn read(etc_apt: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    found.extend(parse_list(&text(&etc_apt.join("sources.list"))));
    let mut parts: Vec<_> = std::fs::read_dir(etc_apt.join("sources.list.d"))
        .map(|dir| dir.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    parts.sort();
    for part in parts {
        match part.extension().and_then(|e| e.to_str()) {
            Some("list") => found.extend(parse_list(&text(&part))),
            Some("sources") => found.extend(parse_deb822(&text(&part))),
            _ => {}
        }
    }
    for source in &mut found {
        source.uris = source.uris.iter().flat_map(|uri| mirrors_of(uri, etc_apt)).collect();
    }
    found
}

/// The URIs that `mirror+file:/etc/apt/mirrors/debian.list` stands for, the preferred ones first;
/// any other URI stands for itself. Debian's own cloud images are configured so.
fn mirrors_of(uri: &str, etc_apt: &Path) -> Vec<String> {
    let path = uri.strip_prefix("mirror+file:").or_else(|| uri.strip_prefix("mirror:file:"));
    let Some(path) = path else { return vec![uri.to_owned()] };
    let path = Path::new("/").join(path.trim_start_matches('/'));
    // The configuration that is read need not be the host's own.
    let path = match path.strip_prefix("/etc/apt") {
        Ok(inside) => etc_apt.join(inside),
        Err(_) => path,
    };
    parse_mirrors(&std::fs::read_to_string(path).unwrap_or_default())
}

/// One mirror a line: `URI [KEY:VALUE...]`, where a lower `priority` is tried first.
fn parse_mirrors(text: &str) -> Vec<String> {
    let mut found: Vec<(u64, String)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let uri = words.next()?.to_owned();
            let priority = words.find_map(|w| w.strip_prefix("priority:")?.parse().ok());
            Some((priority.unwrap_or(u64::MAX), uri))
        })
        .collect();
    found.sort_by_key(|(priority, _)| *priority);
    found.into_iter().map(|(_, uri)| uri).collect()
}

/// `deb [signed-by=… arch=…] URI suite component…`
pub fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.trim_start();
    if rest.len() == line.len() - "deb".len() {
        return None; // `deb-src`, or not a source at all
    }
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|o| o.strip_prefix("signed-by="))
            .map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source { uris: vec![uri], suites: vec![suite], components: words.collect(), signed_by })
}

/// Stanzas of `Field: value` lines, continued by lines that begin with a blank.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            found.extend(source_of(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((field, value)) = line.split_once(':') {
            stanza.push((field.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    found
}

fn source_of(stanza: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| stanza.iter().find(|(f, _)| f == name).map(|(_, v)| v.as_str());
    let words = |name: &str| -> Vec<String> {
        field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let off = field("enabled").is_some_and(|v| {
        ["no", "false", "off", "0", "without", "disable"].contains(&v.to_ascii_lowercase().as_str())
    });
    if off || !words("types").iter().any(|t| t == "deb") {
        return None;
    }
    let signed_by = field("signed-by").filter(|v| v.starts_with('/')).map(str::to_owned);
    let source = Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by,
    };
    (!source.uris.is_empty() && !source.suites.is_empty()).then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# a comment inside a stanza
URIs: http://mirror.example.org/debian/
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://security.example.org/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: https://vendor.example.com/apt
Suites: stable
Components: main
Enabled: no
";

    const ONE_LINE: &str = "\
# deb http://cdrom.example.org/debian bookworm main
deb-src http://mirror.example.org/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/vendor.gpg] https://vendor.example.com/apt stable main
deb http://mirror.example.org/debian bookworm main contrib # the archive
deb\thttp://security.example.org/debian-security/ bookworm-security main
";

    #[test]
    fn proxies_of_the_host_are_found() {
        let dump = "Acquire \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://c:3142\";\n\
                    Acquire::http::Proxy::near \"DIRECT\";\nAcquire::https::Proxy \"\";\n\
                    Acquire::http::Proxy-Auto-Detect \"/usr/bin/find-proxy\";\n\
                    Acquire::http::User-Agent \"x\";\n";
        let found = proxies_of(dump);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0], "Acquire::http::Proxy \"http://c:3142\";");
        assert_eq!(variables_of(&found), [("http_proxy", "http://c:3142".to_owned())]);
        let direct = ["Acquire::https::Proxy \"DIRECT\";".to_owned()];
        assert_eq!(variables_of(&direct), [("https_proxy", String::new())]);
    }

    #[test]
    fn both_formats_give_the_same_mirrors() {
        let wanted = Mirrors {
            archive: "http://mirror.example.org/debian".into(),
            security: Some("http://security.example.org/debian-security".into()),
        };
        assert_eq!(Mirrors::among(&parse_deb822(DEB822)), Some(wanted.clone()));
        assert_eq!(Mirrors::among(&parse_list(ONE_LINE)), Some(wanted));
    }

    #[test]
    fn disabled_and_source_only_entries_are_left_out() {
        assert_eq!(parse_deb822(DEB822).len(), 2);
        assert_eq!(parse_list(ONE_LINE).len(), 3);
        assert!(
            parse_deb822("Types: deb-src\nURIs: http://m.example.org/debian\nSuites: s\n")
                .is_empty()
        );
    }

    #[test]
    fn options_and_continued_fields_are_read() {
        let sources = parse_list(ONE_LINE);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/usr/share/keyrings/vendor.gpg"));
        let sources = parse_deb822(DEB822);
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
    }

    #[test]
    fn a_host_without_a_debian_archive_has_no_mirrors() {
        assert_eq!(Mirrors::among(&parse_list("deb http://u.example.org/ubuntu noble main")), None);
        assert_eq!(Mirrors::among(&parse_list("deb file:///srv/debian bookworm main")), None);
        assert_eq!(Mirrors::of_apt(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_list_of_mirrors_is_followed_as_in_debians_cloud_images() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["sources.list.d", "mirrors"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let stanza = |list: &str, suites: &str| {
            format!(
                "Types: deb deb-src\nURIs: mirror+file:///etc/apt/mirrors/{list}\nSuites: {suites}\nComponents: main\n"
            )
        };
        let text = stanza("debian.list", "trixie trixie-updates trixie-backports");
        let security = stanza("debian-security.list", "trixie-security");
        write("sources.list.d/debian.sources", &format!("{text}\n{security}"));
        write(
            "mirrors/debian.list",
            "# far\nhttp://far.example.org/debian priority:2\n\nhttps://near.example.org/debian\tpriority:1\n",
        );
        assert_eq!(Mirrors::of_apt(dir.path()).unwrap().security, None, "its list is missing");
        write("mirrors/debian-security.list", "https://near.example.org/debian-security\n");
        let found = Mirrors::of_apt(dir.path()).unwrap();
        assert_eq!(found.archive, "https://near.example.org/debian");
        assert_eq!(found.security.as_deref(), Some("https://near.example.org/debian-security"));
    }

    #[test]
    fn a_folder_is_read_whole_and_other_files_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("sources.list.d");
        std::fs::create_dir(&parts).unwrap();
        std::fs::write(parts.join("debian.sources"), DEB822).unwrap();
        std::fs::write(parts.join("old.list.save"), ONE_LINE).unwrap();
        std::fs::write(dir.path().join("sources.list"), "\n").unwrap();
        assert_eq!(read(dir.path()).len(), 2);
    }
}

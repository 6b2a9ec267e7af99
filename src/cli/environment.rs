//! The environment, read once and only here. What was given on the command line wins.

use super::args::Global;
use crate::error::{Error, Result};
use crate::host::Mirrors;
use crate::images::manifest::authority;
use crate::outbound::OutboundVariables;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Every variable that has a meaning, for the help text.
pub const VARIABLES: [(&str, &str); 8] = [
    ("STACKPROOF_STORE", "where images are kept, like --store"),
    ("STACKPROOF_DEBIAN_MIRROR", "the Debian mirror, like --debian-mirror"),
    ("XDG_CACHE_HOME", "its folder stackproof/ is the default store [default: ~/.cache]"),
    ("http(s)_proxy, all_proxy", "the proxy that images are fetched through; no_proxy is heeded"),
    ("SSL_CERT_FILE, _DIR", "the certificate authorities to believe [default: the system's]"),
    ("NO_COLOR", "no colours when set and not empty"),
    ("CI", "plain lines instead of live bars when set and not empty"),
    ("TERM", "plain lines instead of live bars when `dumb`"),
];

/// The store of a user without a home, by Debian's name for a home that is not there.
const NO_HOME: &str = "/nonexistent/.cache/stackproof";

/// What the process was started with, after the command line had its say.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The store's folder, absolute.
    pub store: PathBuf,
    pub debian_mirror: Option<String>,
    /// The root that was asked for, if any.
    pub root: Option<PathBuf>,
    /// Where the process was started.
    pub cwd: PathBuf,
    /// Proxies and certificate authorities.
    pub outbound: OutboundVariables,
    pub verbose: bool,
    /// Whether bars may be drawn on standard error.
    pub live: bool,
    /// Whether standard error may be coloured.
    pub colour: bool,
}

impl Environment {
    pub fn read(global: &Global) -> Result<Environment> {
        let cwd = std::env::current_dir().map_err(|e| {
            Error::host("the current folder cannot be read")
                .because(e)
                .hint("Change to a folder that exists.")
        })?;
        let variable = |name: &str| match (std::env::var_os(name), name) {
            // Of the user's entry in the password file.
            (None, "HOME") => std::env::home_dir().map(Into::into),
            (value, _) => value,
        };
        Self::from(global, &cwd, variable, std::io::stderr().is_terminal())
    }

    fn from(
        global: &Global,
        cwd: &Path,
        variable: impl Fn(&str) -> Option<OsString>,
        terminal: bool,
    ) -> Result<Environment> {
        let set = |name: &str| variable(name).filter(|v| !v.is_empty());
        let cache = || {
            // The XDG specification says that a relative path must be ignored.
            set("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
                .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))
                .map(|cache| cache.join("stackproof"))
        };
        let store = global
            .store
            .clone()
            .or_else(|| set("STACKPROOF_STORE").map(PathBuf::from))
            .or_else(cache)
            // Verbs that only look need none; the others say that this one cannot be made.
            .unwrap_or_else(|| NO_HOME.into());
        let debian_mirror = match (&global.debian_mirror, set("STACKPROOF_DEBIAN_MIRROR")) {
            (Some(url), _) => Some(url.clone()),
            (None, Some(url)) => Some(url.into_string().map_err(|_| {
                Error::input("STACKPROOF_DEBIAN_MIRROR is not UTF-8")
                    .hint("Give the mirror with --debian-mirror URL.")
            })?),
            (None, None) => None,
        };
        // First: any other message would repeat it.
        if debian_mirror.as_deref().is_some_and(|url| authority(url).contains('@')) {
            return Err(Error::input("the URL of the Debian mirror has a password in it")
                .hint("It would stand in logs and images: use a mirror that asks for none."));
        }
        if let Some(url) = &debian_mirror
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            return Err(Error::input(format!("`{url}` is not the URL of a Debian mirror"))
                .hint("It looks like http://mirror.example.org/debian."));
        }
        let live = terminal
            && set("CI").is_none()
            && set("TERM").is_none_or(|term| term.as_os_str() != "dumb");
        Ok(Environment {
            store: cwd.join(store),
            debian_mirror,
            root: global.root.as_ref().map(|root| cwd.join(root)),
            cwd: cwd.to_owned(),
            outbound: OutboundVariables::read(&variable),
            verbose: global.verbose,
            live,
            colour: terminal && set("NO_COLOR").is_none(),
        })
    }
}

impl Environment {
    /// The mirrors that the user gave, if any.
    pub fn mirrors(&self) -> Option<Mirrors> {
        self.debian_mirror.as_deref().map(Mirrors::given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(global: Global, variables: &[(&str, &str)], terminal: bool) -> Result<Environment> {
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Environment::from(&global, Path::new("/here"), find, terminal)
    }

    #[test]
    fn the_store_comes_from_the_option_then_the_variable_then_the_cache() {
        let all = [("STACKPROOF_STORE", "/var"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/h")];
        let given = Global { store: Some("rel".into()), ..Global::default() };
        assert_eq!(read(given, &all, false).unwrap().store, Path::new("/here/rel"));
        let store = |v: &[(&str, &str)]| read(Global::default(), v, false).unwrap().store;
        assert_eq!(store(&all), Path::new("/var"));
        assert_eq!(store(&all[1..]), Path::new("/xdg/stackproof"));
        assert_eq!(store(&all[2..]), Path::new("/h/.cache/stackproof"));
        assert_eq!(
            store(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")]),
            Path::new("/h/.cache/stackproof")
        );
    }

    #[test]
    fn without_a_home_there_is_a_store_that_cannot_be_made() {
        let env = read(Global::default(), &[], false).unwrap();
        assert_eq!(env.store, Path::new(NO_HOME));
    }

    #[test]
    fn bars_are_drawn_only_on_a_terminal_that_is_neither_dumb_nor_of_ci() {
        let live = |v: &[(&str, &str)], terminal| {
            let mut all = vec![("HOME", "/h")];
            all.extend_from_slice(v);
            read(Global::default(), &all, terminal).unwrap().live
        };
        assert!(live(&[], true));
        assert!(live(&[("CI", "")], true));
        assert!(!live(&[("CI", "true")], true));
        assert!(!live(&[("TERM", "dumb")], true));
        assert!(!live(&[], false));
    }

    #[test]
    fn no_color_takes_the_colour_away_and_leaves_the_bars() {
        let e = read(Global::default(), &[("HOME", "/h"), ("NO_COLOR", "1")], true).unwrap();
        assert!(e.live && !e.colour);
    }

    #[test]
    fn a_mirror_that_is_no_url_is_refused_with_an_example() {
        let global = Global { debian_mirror: Some("example".into()), ..Global::default() };
        let e = read(global, &[("HOME", "/h")], false).unwrap_err();
        assert_eq!(e.kind(), crate::error::Kind::Input);
        assert!(e.hint_text().unwrap().contains("http://"));
    }

    #[test]
    fn a_mirror_with_a_password_is_refused_and_the_password_not_repeated() {
        for url in
            ["http://ci:token@mirror/debian", "https://token@mirror", "ftp://ci:token@mirror"]
        {
            let variables = [("HOME", "/h"), ("STACKPROOF_DEBIAN_MIRROR", url)];
            let e = read(Global::default(), &variables, false);
            let e = e.unwrap_err();
            assert_eq!(e.kind(), crate::error::Kind::Input);
            assert!(!e.to_string().contains("token"), "{e}");
        }
        let plain = [("HOME", "/h"), ("STACKPROOF_DEBIAN_MIRROR", "http://mirror/a@b")];
        assert!(read(Global::default(), &plain, false).is_ok());
    }
}

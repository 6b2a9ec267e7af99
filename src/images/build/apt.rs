//! apt with a world of its own: no file of the host's apt is read or written, no root is needed.
//! Packages are verified by Debian's keyring, as ever.

use crate::error::{Context, Error, Kind, Result};
use crate::host::tool::Tool;
use crate::host::{Mirrors, apt_config};
use std::fs;
use std::path::{Path, PathBuf};

/// Debian's keys, carried so that any distribution can verify Debian's packages.
const KEYRING: &str = include_str!("debian-archive-keyring.asc");

/// The sources of a release, in deb822: its archive and, where the mirrors have them, its security
/// updates. The keys stand in the text, because the user that apt runs as cannot open a file of the
/// private store.
pub fn sources(mirrors: &Mirrors, suite: &str) -> String {
    let keys = armored_keys();
    let stanza = |uri: &str, suites: &str| {
        format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By:\n{keys}")
    };
    let mut text = stanza(&mirrors.archive, &format!("{suite} {suite}-updates"));
    if let Some(security) = &mirrors.security {
        text.push('\n');
        text.push_str(&stanza(security, &format!("{suite}-security")));
    }
    text
}

/// The armored keys as a continued field of deb822: a blank before each line, a dot for an empty one.
fn armored_keys() -> String {
    let armor = KEYRING.lines().skip_while(|line| !line.starts_with("-----BEGIN"));
    armor.map(|line| format!(" {}\n", if line.is_empty() { "." } else { line })).collect()
}

/// A folder with apt's lists, cache and configuration, for one release and architecture.
#[derive(Debug)]
pub struct Apt {
    root: PathBuf,
    log: PathBuf,
}

impl Apt {
    /// Makes the world in `root` (which must be there) and reads the lists of packages.
    pub async fn open(
        root: &Path,
        mirrors: &Mirrors,
        suite: &str,
        architecture: &str,
        log: &Path,
    ) -> Result<Apt> {
        let apt = Apt { root: root.to_owned(), log: log.to_owned() };
        let proxies = apt_config::proxy_options().await;
        apt.write_config(mirrors, suite, architecture, &proxies)
            .doing(Kind::Host, || "apt's folder cannot be written".into())
            .map_err(|e| e.at(root, None))?;
        apt.tool("apt-get").args(["-q", "update"]).run(|_| {}).await.map_err(|e| {
            let message =
                format!("the mirror {} does not give the lists of {suite}", mirrors.archive);
            // Not named: its URL may hold a password.
            let hint = match proxies.is_empty() {
                true => "is the mirror up? another can be given with --debian-mirror",
                false => {
                    "are the mirror and the proxy of the host's apt up (`apt-config dump \
                     Acquire::http::Proxy`)? another mirror can be given with --debian-mirror"
                }
            };
            Error::image(message)
                .because(e.to_string())
                .evidence(e.evidence_lines().to_vec())
                .hint(hint)
        })?;
        Ok(apt)
    }

    fn write_config(
        &self,
        mirrors: &Mirrors,
        suite: &str,
        arch: &str,
        proxies: &[String],
    ) -> std::io::Result<()> {
        let proxies = proxies.join("\n");
        let at = |sub: &str| self.root.join(sub);
        for sub in ["lists/partial", "cache/archives/partial", "sources"] {
            fs::create_dir_all(at(sub))?;
        }
        fs::write(at("sources/debian.sources"), sources(mirrors, suite))?;
        fs::write(at("status"), "")?;
        let root = self.root.display();
        fs::write(
            at("apt.conf"),
            format!(
                r#"Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{root}/sources";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{root}";
Dir::State::Lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Log "{root}";
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
{proxies}
"#
            ),
        )
    }

    fn tool(&self, program: &str) -> Tool {
        Tool::new(program).env("APT_CONFIG", self.root.join("apt.conf")).log(&self.log)
    }

    /// What `package` depends on directly, by name.
    pub async fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text =
            self.tool("apt-cache").args(["depends", "--important", package]).output().await?;
        Ok(parse_depends(&text))
    }

    /// Downloads these packages alone, into the cache.
    pub async fn download(&self, packages: &[String]) -> Result<()> {
        let archives = self.root.join("cache/archives");
        self.tool("apt-get").dir(archives).args(["-q", "download"]).args(packages).run(|_| {}).await
    }

    /// Downloads these packages and all that they need, into the cache.
    pub async fn download_with_dependencies(&self, packages: &[String]) -> Result<()> {
        let get = self.tool("apt-get").args(["-q", "-y", "--download-only", "install"]);
        get.args(packages).run(|_| {}).await
    }

    /// Every package in the cache, unpacked over each other into `dir`. Nothing of them is run.
    pub async fn unpack(&self, dir: &Path) -> Result<()> {
        let list = || -> std::io::Result<Vec<PathBuf>> {
            fs::create_dir_all(dir)?;
            let all = fs::read_dir(self.root.join("cache/archives"))?.flatten().map(|e| e.path());
            let mut all: Vec<_> =
                all.filter(|p| p.extension().is_some_and(|e| e == "deb")).collect();
            all.sort();
            Ok(all)
        };
        for package in list().doing(Kind::Host, || "unpacking packages".into())? {
            let unpack = Tool::new("dpkg-deb").log(&self.log).arg("-x");
            unpack.arg(package).arg(dir).run(|_| {}).await?;
        }
        Ok(())
    }
}

/// Of `apt-cache depends`: `  Depends: name`, with `|` before alternatives and `<name>` for what
/// only others provide.
fn parse_depends(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|l| l.trim().strip_prefix("Depends: "))
        .filter(|name| !name.starts_with('<'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_security_where_the_host_has_it() {
        let mut mirrors = Mirrors::given("http://mirror.example.org/debian/");
        assert_eq!(sources(&mirrors, "trixie").matches("Types:").count(), 1);
        mirrors.security = Some("http://mirror.example.org/debian-security".into());
        let text = sources(&mirrors, "trixie");
        let read = crate::host::apt_config::parse_deb822(&text);
        assert_eq!(read[0].suites, ["trixie", "trixie-updates"]);
        assert_eq!(read[1].suites, ["trixie-security"]);
        assert_eq!(Mirrors::among(&read), Some(mirrors));
    }

    #[test]
    fn sources_carry_the_keys_of_both_releases() {
        let keys = armored_keys();
        assert!(keys.starts_with(" -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n"), "{keys}");
        assert!(keys.ends_with(" -----END PGP PUBLIC KEY BLOCK-----\n"), "{keys}");
        assert!(keys.lines().all(|line| line.starts_with(' ') && line.len() > 1));
    }

    #[test]
    fn dependencies_are_read_by_name() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.12.1-cloud-amd64\n |Depends: a\n  Depends: <virtual>\n    real\n  Recommends: b\n";
        assert_eq!(parse_depends(text), ["linux-image-6.12.1-cloud-amd64"]);
    }
}

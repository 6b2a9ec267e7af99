//! Manifests: `images/NAME.toml`, which say what an image is and where it comes from.
//!
//! There are two kinds, told apart by their table: `[pin]` is fetched from a server and recognised
//! by its digest; `[recipe]` is built here. What both have in common stands above the table:
//!
//! ```toml
//! name = "cirros-0.6.3"            # the file's name without `.toml`
//! description = "CirrOS 0.6.3"
//! user = "cirros"                  # who logs in, with a key
//! format = "qcow2"                 # or "raw"
//! cpu = "x86-64-v2"                # the oldest processor it boots on; default x86-64
//! memory_mib = 128                 # the least memory it boots in; default none known
//!
//! [pin]
//! url = "https://images.example.org/cirros-0.6.3-x86_64-disk.img"
//! mirrors = []                     # tried in this order after url
//! size = 21692416                  # bytes, where known
//! sha256 = "7d63…"                 # or sha512
//! sums_url = "https://…/SHA256SUMS" # the publisher's checksum file, for `images check`
//! note = "…"                       # shown when it is listed (end of life, one source only, …)
//!
//! [pin.newest]                     # where newer builds are, for `images update`
//! index = "https://…/images/CHECKSUM"        # a page or checksum file that lists them
//! url = "https://…/images/x-{build}.qcow2"   # beside the index or below it
//! sums_url = "https://…/{build}/SHA256SUMS"  # default: that of the pin
//! ```
//!
//! `{build}` stands for the number of a build: `YYYYMMDD`, `YYYYMMDD.N` or `YYYYMMDD-N`.

use super::digest::{Algorithm, Digest};
use crate::error::{Error, Kind as ErrorKind, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// One `images/NAME.toml`.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub name: String,
    pub description: String,
    /// The account that takes a key at first boot.
    pub user: String,
    pub format: Format,
    pub cpu: CpuLevel,
    /// The least memory it boots in, MiB, where known.
    pub memory_mib: Option<u64>,
    pub kind: Kind,
    /// The file it was read from.
    pub path: PathBuf,
    /// The file's text: recipes are keyed by it and parsed further from it.
    pub text: String,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Pin(Pin),
    /// The table of the recipe, as it stands. The builder reads it with [`Manifest::recipe`].
    Recipe(toml::Table),
}

/// An image that somebody publishes, recognised by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    pub url: String,
    pub mirrors: Vec<String>,
    /// Bytes, where known: a server that announces another size is refused before the download.
    pub size: Option<u64>,
    pub digest: Digest,
    /// The publisher's checksum file.
    pub sums_url: Option<String>,
    pub newest: Option<Box<NewestRule>>,
    pub note: Option<String>,
}

/// Stands for the number of a build in the addresses of a [`NewestRule`].
pub const BUILD: &str = "{build}";

/// Where the builds of an image are listed, and how their addresses are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewestRule {
    /// A page or a checksum file that lists the builds.
    pub index: String,
    /// The address of a build, with [`BUILD`] in it.
    pub url: String,
    /// The address of its checksum file, with [`BUILD`] in it.
    pub sums_url: Option<String>,
}

impl NewestRule {
    /// What stands before and after the number in a line of the index: a file's whole name, or a
    /// folder's with its slash. `None` where the builds do not lie beside or below the index.
    pub fn entry(&self) -> Option<(&str, &str)> {
        let folder = &self.index[..=self.index.rfind('/')?];
        let below = self.url.strip_prefix(folder)?;
        let entry = below.find('/').map_or(below, |end| &below[..=end]);
        entry.split_once(BUILD)
    }
}

impl Pin {
    /// Every address, in the order in which they are tried.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.url.as_str()).chain(self.mirrors.iter().map(String::as_str))
    }

    /// The last part of the URL's path: the name that checksum files use.
    pub fn file_name(&self) -> &str {
        let path = self.url.split(['?', '#']).next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Qcow2,
    Raw,
}

impl Format {
    /// The name that QEMU's `-f` and `format=` want.
    pub fn name(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The x86-64 levels of the psABI. Ordered: an image needs at least its level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum CpuLevel {
    #[default]
    #[serde(rename = "x86-64")]
    V1,
    #[serde(rename = "x86-64-v2")]
    V2,
    #[serde(rename = "x86-64-v3")]
    V3,
    #[serde(rename = "x86-64-v4")]
    V4,
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CpuLevel::V1 => "x86-64",
            CpuLevel::V2 => "x86-64-v2",
            CpuLevel::V3 => "x86-64-v3",
            CpuLevel::V4 => "x86-64-v4",
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    name: Spanned<String>,
    description: String,
    user: Spanned<String>,
    format: Format,
    #[serde(default)]
    cpu: CpuLevel,
    memory_mib: Option<Spanned<u64>>,
    pin: Option<Spanned<RawPin>>,
    recipe: Option<Spanned<toml::Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPin {
    url: Spanned<String>,
    #[serde(default)]
    mirrors: Vec<Spanned<String>>,
    size: Option<Spanned<u64>>,
    sha256: Option<Spanned<String>>,
    sha512: Option<Spanned<String>>,
    sums_url: Option<Spanned<String>>,
    newest: Option<Spanned<RawNewest>>,
    note: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNewest {
    index: Spanned<String>,
    url: Spanned<String>,
    sums_url: Option<Spanned<String>>,
}

/// Only the recipe of a manifest whose other keys have been checked already.
#[derive(Deserialize)]
struct OnlyRecipe<T> {
    recipe: T,
}

impl Manifest {
    /// Reads one manifest. Errors name the file and the line.
    pub fn load(path: &Path) -> Result<Manifest> {
        let text = crate::fsutil::read_text(path, ErrorKind::Input)?;
        Manifest::parse(path, text)
    }

    /// Reads the text of the manifest at `path` (which gives the name and the place of errors).
    pub fn parse(path: &Path, text: String) -> Result<Manifest> {
        let raw: RawManifest = parse_strict(path, &text)?;
        let wrong = |at: &std::ops::Range<usize>, message: String| {
            Error::input(message).at(path, Some(line_of(&text, at.start)))
        };

        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        if raw.name.as_ref() != stem {
            return Err(wrong(
                &raw.name.span(),
                format!(
                    "the name is `{}`, but the file is called `{stem}.toml`",
                    raw.name.as_ref()
                ),
            )
            .hint("name the file after the image: this is what keeps names unique"));
        }
        if !is_name(stem) || stem.contains('_') {
            return Err(wrong(
                &raw.name.span(),
                format!("`{stem}` is no image name: lower-case letters, digits, `.` and `-` are"),
            ));
        }
        if !is_name(raw.user.as_ref()) {
            return Err(wrong(
                &raw.user.span(),
                format!("`{}` is not a login name", raw.user.as_ref().escape_default()),
            ));
        }
        if let Some(memory) = &raw.memory_mib
            && *memory.as_ref() == 0
        {
            return Err(wrong(&memory.span(), "nothing boots in 0 MiB".into()));
        }

        let kind = match (raw.pin, raw.recipe) {
            (Some(pin), None) => Kind::Pin(pin_of(pin, &wrong)?),
            (None, Some(recipe)) => Kind::Recipe(recipe.into_inner()),
            (Some(pin), Some(recipe)) => {
                let second =
                    if pin.span().start > recipe.span().start { pin.span() } else { recipe.span() };
                return Err(wrong(&second, "an image has a [pin] or a [recipe], not both".into()));
            }
            (None, None) => {
                return Err(Error::input(
                    "neither a [pin] (fetched) nor a [recipe] (built) is here",
                )
                .at(path, Some(1)));
            }
        };
        Ok(Manifest {
            name: raw.name.into_inner(),
            description: raw.description,
            user: raw.user.into_inner(),
            format: raw.format,
            cpu: raw.cpu,
            memory_mib: raw.memory_mib.map(Spanned::into_inner),
            kind,
            path: path.to_owned(),
            text,
        })
    }

    pub fn pin(&self) -> Option<&Pin> {
        match &self.kind {
            Kind::Pin(pin) => Some(pin),
            Kind::Recipe(_) => None,
        }
    }

    pub fn is_recipe(&self) -> bool {
        matches!(self.kind, Kind::Recipe(_))
    }

    /// Reads `[recipe]` as a `T` (let it `deny_unknown_fields`), with errors that name the line
    /// in the manifest. Use [`Manifest::line`] for what serde cannot check.
    pub fn recipe<T: DeserializeOwned>(&self) -> Result<T> {
        if !self.is_recipe() {
            return Err(Error::input(format!("`{}` is fetched, not built", self.name))
                .at(&self.path, None)
                .hint(format!("stackproof images fetch {}", self.name)));
        }
        parse_strict::<OnlyRecipe<T>>(&self.path, &self.text).map(|o| o.recipe)
    }

    /// The text with another pin in it: address, checksum file, digest and size. Comments and layout
    /// stay. Where the old and the new number of the build are given, the text is renumbered too.
    pub fn with_pin(&self, pin: &Pin, renumber: Option<(&str, &str)>) -> Result<String> {
        let text = match renumber {
            Some((old, new)) => self.text.replace(old, new),
            None => self.text.clone(),
        };
        let raw: RawManifest = parse_strict(&self.path, &text)?;
        let raw = raw.pin.ok_or_else(|| Error::internal("only a pin is renewed"))?.into_inner();
        let text = edited(&text, pin_edits(&text, &raw, pin));
        let read = Manifest::parse(&self.path, text.clone())?;
        let same = read.pin().is_some_and(|read| {
            (&read.url, &read.sums_url, read.digest, read.size)
                == (&pin.url, &pin.sums_url, pin.digest, pin.size)
        });
        if !same {
            return Err(Error::input("the pin could not be renewed in this layout")
                .at(&self.path, None)
                .hint("write every key of [pin] on a line of its own"));
        }
        Ok(text)
    }

    /// The line (from 1) of a byte offset into [`Manifest::text`], as [`Spanned`] gives them.
    pub fn line(&self, offset: usize) -> usize {
        line_of(&self.text, offset)
    }
}

fn pin_of(
    pin: Spanned<RawPin>,
    wrong: &dyn Fn(&std::ops::Range<usize>, String) -> Error,
) -> Result<Pin> {
    let span = pin.span();
    let pin = pin.into_inner();
    for url in std::iter::once(&pin.url).chain(&pin.mirrors).chain(&pin.sums_url) {
        check_url(url.as_ref()).map_err(|why| wrong(&url.span(), why))?;
    }
    let digest = match (&pin.sha256, &pin.sha512) {
        (Some(hex), None) => (Algorithm::Sha256, hex),
        (None, Some(hex)) => (Algorithm::Sha512, hex),
        (Some(_), Some(second)) => {
            return Err(wrong(&second.span(), "one of sha256 and sha512 is enough".into()));
        }
        (None, None) => {
            return Err(wrong(
                &span,
                "a pin needs sha256 or sha512: nothing enters unverified".into(),
            )
            .hint("take it from the publisher's checksum file"));
        }
    };
    let (algorithm, hex) = digest;
    let digest =
        Digest::from_hex(algorithm, hex.as_ref()).map_err(|why| wrong(&hex.span(), why))?;
    if let Some(size) = &pin.size
        && *size.as_ref() == 0
    {
        return Err(wrong(&size.span(), "an image has more than 0 bytes".into()));
    }
    Ok(Pin {
        url: pin.url.into_inner(),
        mirrors: pin.mirrors.into_iter().map(Spanned::into_inner).collect(),
        size: pin.size.map(Spanned::into_inner),
        digest,
        sums_url: pin.sums_url.map(Spanned::into_inner),
        newest: pin.newest.map(|newest| newest_of(newest, wrong)).transpose()?.map(Box::new),
        note: pin.note,
    })
}

fn newest_of(
    newest: Spanned<RawNewest>,
    wrong: &dyn Fn(&std::ops::Range<usize>, String) -> Error,
) -> Result<NewestRule> {
    let newest = newest.into_inner();
    for url in [&newest.index, &newest.url].into_iter().chain(&newest.sums_url) {
        check_url(url.as_ref()).map_err(|why| wrong(&url.span(), why))?;
    }
    let span = newest.url.span();
    let rule = NewestRule {
        index: newest.index.into_inner(),
        url: newest.url.into_inner(),
        sums_url: newest.sums_url.map(Spanned::into_inner),
    };
    if rule.entry().is_none() {
        return Err(wrong(
            &span,
            format!("the address of a build has {BUILD} in it, beside or below `index`"),
        ));
    }
    Ok(rule)
}

type TextEdit = (std::ops::Range<usize>, String);

/// What is to be replaced in `text`, which was read as `raw`, for it to say `pin`.
fn pin_edits(text: &str, raw: &RawPin, pin: &Pin) -> Vec<TextEdit> {
    let quoted = |value: &str| toml::Value::from(value).to_string();
    let mut edits = vec![(raw.url.span(), quoted(&pin.url))];
    if let (Some(old), Some(new)) = (&raw.sums_url, &pin.sums_url) {
        edits.push((old.span(), quoted(new)));
    }
    if let Some(old) = raw.sha256.as_ref().or(raw.sha512.as_ref()) {
        let name = if raw.sha256.is_some() { "sha256" } else { "sha512" };
        let start = text[..old.span().start].rfind(name).unwrap_or(old.span().start);
        let line = format!("{} = {}", pin.digest.algorithm().name(), quoted(&pin.digest.hex()));
        edits.push((start..old.span().end, line));
    }
    let line_end = |at: usize| text[at..].find('\n').map_or(text.len(), |end| at + end + 1);
    match (&raw.size, pin.size) {
        (Some(old), Some(new)) => edits.push((old.span(), new.to_string())),
        (Some(old), None) => {
            let start = text[..old.span().start].rfind('\n').map_or(0, |at| at + 1);
            edits.push((start..line_end(start), String::new()));
        }
        (None, Some(new)) => {
            let end = line_end(raw.url.span().end);
            edits.push((end..end, format!("size = {new}\n")));
        }
        (None, None) => {}
    }
    edits
}

/// The edits do not overlap.
fn edited(text: &str, mut edits: Vec<TextEdit>) -> String {
    edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    let mut text = text.to_owned();
    for (range, new) in edits {
        text.replace_range(range, &new);
    }
    text
}

/// Of a URL, what stands between its scheme and its path: the host, and who asks it.
pub fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

fn check_url(url: &str) -> Result<(), String> {
    if !(url.starts_with("https://") || url.starts_with("http://")) {
        return Err(format!("`{url}` is not an http:// or https:// URL"));
    }
    let authority = authority(url);
    if authority.is_empty() {
        return Err(format!("`{url}` names no host"));
    }
    if authority.contains('@') {
        // Not repeated in the message: it would show the password.
        return Err("a URL with a user name in it: credentials do not belong in a manifest".into());
    }
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("`{}` has white space in it", url.escape_default()));
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    (1..=64).contains(&text.len())
        && text.chars().all(fine)
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
}

/// All manifests of a folder, sorted by name.
#[derive(Clone, Debug, Default)]
pub struct Manifests(Vec<Manifest>);

/// Reads every `*.toml` of `folder`. One wrong manifest fails them all: a typing error must not
/// look like a missing image.
pub fn load_dir(folder: &Path) -> Result<Manifests> {
    let unreadable = |e: std::io::Error| {
        Error::input("the folder of image manifests could not be read")
            .at(folder, None)
            .because(e)
            .hint("run stackproof in its source folder, or say where the manifests are")
    };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if is_toml_file(&path) {
            all.push(Manifest::load(&path)?);
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Manifests(all))
}

/// Whether a folder's entry is meant to be read: hidden names are an editor's or a file manager's
/// (`.#x.toml`, `._x.toml`), and a folder is none.
pub fn is_toml_file(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str());
    let meant = name.is_none_or(|n| n.ends_with(".toml") && !n.starts_with('.'));
    meant && path.extension().is_some_and(|e| e == "toml") && !path.is_dir()
}

impl Manifests {
    pub fn new(mut all: Vec<Manifest>) -> Manifests {
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Manifests(all)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Manifest> {
        self.0.iter()
    }

    /// The manifest called `name`; the error suggests a near name and lists what there is.
    pub fn get(&self, name: &str) -> Result<&Manifest> {
        self.0.iter().find(|m| m.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.0.iter().map(|m| m.name.as_str()).collect();
            let e = Error::input(format!("there is no image called `{name}`"));
            match nearest(name, names.iter().copied()) {
                Some(near) => e.hint(format!("did you mean `{near}`?")),
                None if names.is_empty() => e.hint("no manifests were found"),
                None => e.hint(format!("there are: {}", names.join(", "))),
            }
        })
    }
}

impl<'a> IntoIterator for &'a Manifests {
    type Item = &'a Manifest;
    type IntoIter = std::slice::Iter<'a, Manifest>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Parses TOML, turning serde's errors into ours: file, line, and the key that was meant.
pub fn parse_strict<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|e| {
        let line = e.span().map(|span| line_of(text, span.start));
        // The library's message can have several lines; the first says what is wrong.
        let message = e.message().lines().next().unwrap_or("not valid TOML").to_owned();
        let suggestion = did_you_mean(&message);
        let error = Error::input(message).at(path, line);
        match suggestion {
            Some(hint) => error.hint(hint),
            None => error,
        }
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    let end = offset.min(text.len());
    text.as_bytes()[..end].iter().filter(|&&b| b == b'\n').count() + 1
}

/// For serde's "unknown field `x`, expected one of `a`, `b`": the name in quotes first is what
/// stands there, the others are what may.
fn did_you_mean(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    nearest(wrong, quoted).map(|near| format!("did you mean `{near}`?"))
}

/// The candidate most like `word`, if one is like it at all.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (strsim::jaro_winkler(word, c), c))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"name = "tiny"
description = "A tiny image"
user = "cirros"
format = "qcow2"
cpu = "x86-64-v2"
memory_mib = 128

[pin]
url = "https://images.example.org/x/tiny.img?a=b"
mirrors = ["http://mirror.example.org/tiny.img"]
size = 10
sha256 = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"
sums_url = "https://images.example.org/x/SUMS"

[pin.newest]
index = "https://images.example.org/x/"
url = "https://images.example.org/x/{build}/tiny.img"
"#;

    fn parse(text: &str) -> Result<Manifest> {
        Manifest::parse(Path::new("images/tiny.toml"), text.to_owned())
    }

    /// The error of GOOD with `from` replaced by `to`.
    fn broken(from: &str, to: &str) -> Error {
        assert!(GOOD.contains(from), "the test replaces nothing: {from}");
        parse(&GOOD.replace(from, to)).unwrap_err()
    }

    #[test]
    fn a_pin_is_read_whole() {
        let m = parse(GOOD).unwrap();
        assert_eq!((m.name.as_str(), m.user.as_str()), ("tiny", "cirros"));
        assert_eq!((m.cpu, m.memory_mib, m.format), (CpuLevel::V2, Some(128), Format::Qcow2));
        let pin = m.pin().unwrap();
        assert_eq!(pin.file_name(), "tiny.img");
        assert_eq!(pin.size, Some(10));
        assert_eq!(pin.urls().count(), 2);
        assert_eq!(pin.sums_url.as_deref(), Some("https://images.example.org/x/SUMS"));
        assert_eq!(pin.newest.as_ref().unwrap().entry(), Some(("", "/")));
        assert_eq!(pin.digest, Digest::of(Algorithm::Sha256, b""));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_key_that_was_meant() {
        let e = broken("mirrors", "miror");
        assert_eq!(e.file().unwrap(), (Path::new("images/tiny.toml"), Some(10)));
        assert!(e.message().contains("`miror`"), "{e}");
        assert_eq!(e.hint_text(), Some("did you mean `mirrors`?"));
    }

    #[test]
    fn an_unknown_format_is_named_with_its_line() {
        let e = broken("\"qcow2\"", "\"qcow\"");
        assert_eq!(e.file().unwrap().1, Some(4));
        assert_eq!(e.hint_text(), Some("did you mean `qcow2`?"));
    }

    #[test]
    fn values_that_serde_cannot_judge_are_refused_at_their_line() {
        for (from, to, line, says) in [
            ("\"tiny\"", "\"tony\"", 1, "tiny.toml"),
            ("\"cirros\"", "\"-o x\"", 3, "login"),
            ("128", "0", 6, "0 MiB"),
            ("https://images", "ftp://images", 9, "http"),
            ("https://images.", "https://me:pw12345678@images.", 9, "credentials"),
            ("http://mirror.example.org/tiny.img", "http:///tiny.img", 10, "no host"),
            ("size = 10", "size = 0", 11, "0 bytes"),
            ("B855\"", "B8\"", 12, "64 hexadecimal digits"),
            ("\"E3B0", "\"G3B0", 12, "`G`"),
            ("sha256", "sha512", 12, "128"),
            ("https://images.example.org/x/SUMS", "SUMS", 13, "http"),
            ("index = \"https://images", "index = \"ftp://images", 16, "http"),
            ("/x/{build}/", "/{build}/", 17, "beside or below"),
            ("{build}", "build", 17, "{build}"),
        ] {
            let e = broken(from, to);
            assert_eq!(e.file().unwrap().1, Some(line), "{e}");
            assert!(e.message().contains(says), "{e}");
            assert_eq!(e.kind(), ErrorKind::Input);
        }
    }

    #[test]
    fn names_that_the_store_could_not_carry_are_refused() {
        for name in ["Tiny", "ti_ny", "-tiny", "ti ny"] {
            let text = GOOD.replace("\"tiny\"", &format!("{name:?}"));
            let e = Manifest::parse(Path::new(&format!("images/{name}.toml")), text).unwrap_err();
            assert!(e.message().contains("no image name"), "{e}");
        }
    }

    #[test]
    fn the_password_in_a_url_is_not_repeated() {
        let e = broken("https://images.", "https://me:pw12345678@images.");
        assert!(!e.to_string().contains("pw12345678"), "{e}");
    }

    #[test]
    fn a_pin_without_a_digest_is_refused() {
        let without: String =
            GOOD.lines().filter(|l| !l.starts_with("sha256")).map(|l| format!("{l}\n")).collect();
        let e = parse(&without).unwrap_err();
        assert!(e.message().contains("unverified"), "{e}");
        assert_eq!(e.file().unwrap().1, Some(8));
    }

    #[test]
    fn two_digests_and_two_kinds_are_refused() {
        let two = GOOD.replace("size = 10", &format!("sha512 = \"{}\"", "0".repeat(128)));
        assert!(parse(&two).unwrap_err().message().contains("is enough"));
        let e = parse(&format!("{GOOD}[recipe]\nbuilder = \"x\"\n")).unwrap_err();
        assert!(e.message().contains("not both"), "{e}");
        assert_eq!(e.file().unwrap().1, Some(18));
        let head = GOOD.split("[pin]").next().unwrap();
        assert!(parse(head).unwrap_err().message().contains("neither"));
    }

    #[test]
    fn a_broken_toml_is_an_input_error_with_its_line() {
        let e = broken("user = \"cirros\"", "user = \"cirros");
        assert_eq!((e.kind(), e.file().unwrap().1), (ErrorKind::Input, Some(3)));
    }

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct TestRecipe {
        suite: String,
    }

    #[test]
    fn a_recipe_is_read_by_its_builder_with_lines_of_the_manifest() {
        let head = GOOD.split("[pin]").next().unwrap();
        let m = parse(&format!("{head}[recipe]\nsuite = \"trixie\"\n")).unwrap();
        assert!(m.is_recipe() && m.pin().is_none());
        assert_eq!(m.recipe::<TestRecipe>().unwrap().suite, "trixie");
        let m = parse(&format!("{head}[recipe]\nsuiet = \"trixie\"\n")).unwrap();
        let e = m.recipe::<TestRecipe>().unwrap_err();
        assert_eq!(e.file().unwrap().1, Some(9), "{e}");
        assert_eq!(e.hint_text(), Some("did you mean `suite`?"));
        assert!(
            parse(GOOD).unwrap().recipe::<TestRecipe>().unwrap_err().message().contains("fetched")
        );
    }

    #[test]
    fn every_manifest_of_the_repository_is_right() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        let all = load_dir(&folder).unwrap();
        for name in [
            "cirros-0.6.3",
            "cirros-0.6.2",
            "centos-stream-9",
            "centos-7",
            "debian-12-genericcloud",
        ] {
            assert!(all.get(name).unwrap().pin().is_some(), "{name}");
        }
        // An exact value of each algorithm, so that a slip in a file is seen.
        assert_eq!(
            all.get("cirros-0.6.2").unwrap().pin().unwrap().digest.to_string(),
            "sha256:07e44a73e54c94d988028515403c1ed762055e01b83a767edf3c2b387f78ce00"
        );
        assert!(
            all.get("debian-12-genericcloud")
                .unwrap()
                .pin()
                .unwrap()
                .digest
                .hex()
                .starts_with("6c2607f1")
        );
    }

    #[test]
    fn an_unknown_image_is_answered_with_the_nearest_name() {
        let all = Manifests::new(vec![parse(GOOD).unwrap()]);
        assert_eq!(all.get("tinny").unwrap_err().hint_text(), Some("did you mean `tiny`?"));
        assert_eq!(all.get("zzz").unwrap_err().hint_text(), Some("there are: tiny"));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let e = load_dir(Path::new("/nonexistent/images")).unwrap_err();
        assert!(e.to_string().starts_with("/nonexistent/images: "), "{e}");
    }
}

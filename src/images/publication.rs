//! A pin compared with what its publisher offers now, and renewed from it.
//!
//! Publishers number the builds of an image by date: `20260714.1` (CentOS, Rocky), `20260712-2537`
//! (Debian). `[pin.newest]` says where their names are listed and how the address of a build is
//! made from its number.

use super::digest::Digest;
use super::fetch::Publisher;
use super::manifest::{BUILD, Manifest, NewestRule, Pin};
use super::sums::pin_from_sums;
use crate::error::{Error, Result};
use std::fmt;

/// How a pin stands to what its publisher offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinState {
    /// The checksum file has the digest of the pin.
    Current,
    /// The checksum file has another digest for the same name.
    Changed { published: Digest },
    /// The server does not have the image any more.
    Gone,
}

/// The number of a build: a date, and what tells the builds of one day apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BuildNumber {
    date: u32,
    serial: u64,
    text: String,
}

impl fmt::Display for BuildNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl BuildNumber {
    /// The number that `text` begins with: `YYYYMMDD`, then `.N` or `-N` where they are there.
    fn at_start(text: &str) -> Option<BuildNumber> {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        if digits(text) != 8 {
            return None;
        }
        let serial = text[8..].strip_prefix(['.', '-']).map_or(0, digits);
        let end = if serial == 0 { 8 } else { 9 + serial };
        Some(BuildNumber {
            date: text[..8].parse().ok()?,
            serial: if serial == 0 { 0 } else { text[9..end].parse().ok()? },
            text: text[..end].to_owned(),
        })
    }
}

impl NewestRule {
    /// The address of a build.
    pub fn url_of(&self, build: &BuildNumber) -> String {
        self.url.replace(BUILD, &build.text)
    }

    /// The address of its checksum file, where the rule names one.
    pub fn sums_url_of(&self, build: &BuildNumber) -> Option<String> {
        self.sums_url.as_ref().map(|url| url.replace(BUILD, &build.text))
    }

    /// The newest build that an index lists.
    fn newest_in(&self, index: &str) -> Option<BuildNumber> {
        let (before, after) = self.entry()?;
        let in_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let build_at = |(at, _)| {
            let rest = index[at..].strip_prefix(before)?;
            let build = BuildNumber::at_start(rest)?;
            let rest = rest[build.text.len()..].strip_prefix(after)?;
            let is_whole = !index[..at].ends_with(in_name)
                && (after.ends_with('/') || !rest.starts_with(in_name));
            is_whole.then_some(build)
        };
        index.char_indices().filter_map(build_at).max()
    }

    /// The number in an address that this rule made.
    fn build_of(&self, url: &str) -> Option<BuildNumber> {
        let (before, _) = self.url.split_once(BUILD)?;
        let build = BuildNumber::at_start(url.strip_prefix(before)?)?;
        (self.url_of(&build) == url).then_some(build)
    }
}

/// Compares the pin of `manifest` with the publisher's checksum file.
pub async fn check(manifest: &Manifest, publisher: &Publisher) -> Result<PinState> {
    let pin = pin_of(manifest)?;
    let sums_url = sums_url(manifest, pin)?;
    if publisher.look(&pin.url).await?.is_none() {
        return Ok(PinState::Gone);
    }
    let published = published(manifest, pin, sums_url, publisher).await?.digest;
    Ok(match published == pin.digest {
        true => PinState::Current,
        false => PinState::Changed { published },
    })
}

/// What [`renew`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The pin names the newest build.
    Newest(BuildNumber),
    /// The text of the manifest with the newest build.
    Newer { build: BuildNumber, text: String },
}

/// The newest build of the image, as a new text of its manifest.
pub async fn renew(manifest: &Manifest, publisher: &Publisher) -> Result<Renewal> {
    let pin = pin_of(manifest)?;
    let Some(rule) = &pin.newest else {
        return Err(Error::input("the manifest does not say where newer builds are")
            .at(&manifest.path, None)
            .hint("add [pin.newest], as images/centos-stream-9.toml has it"));
    };
    let index = publisher.read_text(&rule.index).await?.ok_or_else(|| missing(&rule.index))?;
    let newest = rule.newest_in(&index).ok_or_else(|| {
        Error::image(format!("{} lists no build of {}", rule.index, manifest.name))
            .at(&manifest.path, None)
            .hint("compare the index with `url` of [pin.newest]")
    })?;
    let old = rule.build_of(&pin.url);
    if old.as_ref().is_some_and(|old| *old >= newest) {
        return Ok(Renewal::Newest(newest));
    }
    let url = rule.url_of(&newest);
    let sums_url = rule.sums_url_of(&newest).or(pin.sums_url.clone());
    let renewed = Pin { url, sums_url, size: None, ..pin.clone() };
    let sums_url = self::sums_url(manifest, &renewed)?.to_owned();
    let renewed = published(manifest, &renewed, &sums_url, publisher).await?;
    let file = publisher.look(&renewed.url).await?.ok_or_else(|| missing(&renewed.url))?;
    let renewed = Pin { size: file.size, ..renewed };
    let builds = old.as_ref().map(|old| (old.text.as_str(), newest.text.as_str()));
    let text = manifest.with_pin(&renewed, builds)?;
    Ok(Renewal::Newer { build: newest, text })
}

/// The pin as the checksum file at `sums_url` has it.
async fn published(
    manifest: &Manifest,
    pin: &Pin,
    sums_url: &str,
    publisher: &Publisher,
) -> Result<Pin> {
    let sums = publisher.read_text(sums_url).await?.ok_or_else(|| missing(sums_url))?;
    pin_from_sums(pin, &sums)
        .map_err(|e| e.while_doing(sums_url.to_owned()).at(&manifest.path, None))
}

fn pin_of(manifest: &Manifest) -> Result<&Pin> {
    manifest.pin().ok_or_else(|| {
        Error::input(format!("`{}` is built here: no publisher has it", manifest.name))
            .at(&manifest.path, None)
            .hint(format!("stackproof images build {}", manifest.name))
    })
}

fn sums_url<'p>(manifest: &Manifest, pin: &'p Pin) -> Result<&'p str> {
    pin.sums_url.as_deref().ok_or_else(|| {
        Error::input("the manifest names no checksum file")
            .at(&manifest.path, None)
            .hint("add sums_url to [pin]: the publisher's SHA256SUMS, SHA512SUMS or CHECKSUM")
    })
}

fn missing(url: &str) -> Error {
    Error::image(format!("{url} is not there (404)"))
        .hint("open the address in a browser; the publisher may have moved the folder")
}

#[cfg(test)]
#[path = "publication_tests.rs"]
mod tests;

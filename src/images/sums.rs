//! Checksum files as publishers write them: GNU (`hex  name`, `hex *name`), BSD
//! (`SHA256 (name) = hex`), with comments, with other algorithms in between, and PGP clear-signed.
//!
//! The signature is not checked here: a pin is compared with such a file only when a person
//! updates it, and from then on the pin is what counts.

use super::digest::{Algorithm, Digest};
use super::manifest::Pin;
use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub digest: Digest,
}

/// Every SHA-256 and SHA-512 in `text`. Lines that are neither are passed over.
pub fn parse(text: &str) -> Vec<Entry> {
    signed_part(text).filter_map(|line| bsd(line).or_else(|| gnu(line))).collect()
}

/// The digest of exactly `name` (`x-9-1.qcow2` is not `x-86-9-1.qcow2`), the longer of two if both
/// algorithms are there. Two different digests of one algorithm are an error.
pub fn find(text: &str, name: &str) -> Result<Digest> {
    Ok(*find_all(text, name)?.last().expect("an empty list is an error"))
}

/// The digests of exactly `name`, one an algorithm, the longest last.
fn find_all(text: &str, name: &str) -> Result<Vec<Digest>> {
    let all = parse(text);
    let mut found: Vec<Digest> = all.iter().filter(|e| e.name == name).map(|e| e.digest).collect();
    found.sort_unstable();
    found.dedup();
    for pair in found.windows(2) {
        if pair[0].algorithm() == pair[1].algorithm() {
            return Err(Error::image(format!(
                "the checksum file has two digests for `{name}`: {} and {}",
                pair[0], pair[1]
            )));
        }
    }
    if found.is_empty() {
        let e = Error::image(format!("the checksum file does not list `{name}`"));
        return Err(if all.is_empty() {
            e.hint("it has no SHA-256 or SHA-512 in it at all: is it a checksum file?")
        } else {
            e.evidence(all.iter().take(10).map(|e| format!("it lists {}", e.name)))
        });
    }
    Ok(found)
}

/// The pin with the digest that its publisher's checksum file has for it now, of the pin's
/// algorithm where the file has it. The size is forgotten when the digest changes: it belongs to
/// the old file.
pub fn pin_from_sums(pin: &Pin, text: &str) -> Result<Pin> {
    let found = find_all(text, pin.file_name())?;
    let same = found.iter().find(|d| d.algorithm() == pin.digest.algorithm());
    let digest = *same.or(found.last()).expect("an empty list is an error");
    let size = pin.size.filter(|_| digest == pin.digest);
    Ok(Pin { digest, size, ..pin.clone() })
}

/// The lines that count: all of a plain file, those under the signature of a clear-signed one.
fn signed_part(text: &str) -> impl Iterator<Item = &str> {
    let signed = text.lines().any(|l| l.trim_end() == "-----BEGIN PGP SIGNED MESSAGE-----");
    let mut inside = !signed;
    let mut in_header = false;
    text.lines().filter_map(move |line| {
        let line = line.trim_end();
        if !signed {
            return Some(line);
        }
        match line {
            "-----BEGIN PGP SIGNED MESSAGE-----" => {
                (inside, in_header) = (true, true);
                None
            }
            "-----BEGIN PGP SIGNATURE-----" => {
                inside = false;
                None
            }
            // The header ends at the first empty line.
            _ if in_header => {
                in_header = !line.is_empty();
                None
            }
            // A line that began with a dash was given "- " in front (RFC 9580, 7.2).
            _ if inside => Some(line.strip_prefix("- ").unwrap_or(line)),
            _ => None,
        }
    })
}

fn bsd(line: &str) -> Option<Entry> {
    let (algorithm, rest) = line.split_once(" (")?;
    let algorithm =
        Algorithm::ALL.into_iter().find(|a| a.name().eq_ignore_ascii_case(algorithm.trim()))?;
    let (name, hex) = rest.rsplit_once(") = ")?;
    Some(Entry { name: name.into(), digest: Digest::from_hex(algorithm, hex.trim()).ok()? })
}

fn gnu(line: &str) -> Option<Entry> {
    let (hex, rest) = line.split_once(' ')?;
    let algorithm = Algorithm::ALL.into_iter().find(|a| a.hex_len() == hex.len())?;
    // The second column is a space for text or a star for binary.
    let name = rest.strip_prefix([' ', '*']).unwrap_or(rest).trim_start_matches("./");
    if name.is_empty() {
        return None;
    }
    Some(Entry { name: name.into(), digest: Digest::from_hex(algorithm, hex).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> String {
        let path = format!("{}/fixtures/images/sums/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn digest(hex_pair: &str) -> Digest {
        Digest::from_hex(Algorithm::Sha256, &hex_pair.repeat(32)).unwrap()
    }

    #[test]
    fn every_style_gives_the_same_entries() {
        for style in ["gnu.txt", "gnu-binary.txt", "bsd.txt", "clear-signed.txt"] {
            let text = fixture(style);
            assert_eq!(find(&text, "image-9-20260101.0.qcow2").unwrap(), digest("ab"), "{style}");
            assert_eq!(
                find(&text, "image-x86_64-9-20260101.0.qcow2").unwrap(),
                digest("cd"),
                "{style}"
            );
            assert_eq!(parse(&text).len(), 2, "{style}");
        }
    }

    #[test]
    fn names_match_exactly() {
        let text = fixture("bsd.txt");
        for near in
            ["image-9-20260101.0.qcow", "mage-9-20260101.0.qcow2", "IMAGE-9-20260101.0.qcow2"]
        {
            let e = find(&text, near).unwrap_err();
            assert!(e.message().contains(near), "{e}");
            assert!(e.evidence_lines().iter().any(|l| l.contains("image-9-20260101.0.qcow2")));
        }
    }

    #[test]
    fn nothing_after_the_signature_or_before_the_message_counts() {
        let text = fixture("clear-signed.txt");
        let forged =
            format!("{}  evil.qcow2\n{text}{}  evil.qcow2\n", "00".repeat(32), "00".repeat(32));
        assert!(find(&forged, "evil.qcow2").is_err());
        assert_eq!(find(&forged, "image-9-20260101.0.qcow2").unwrap(), digest("ab"));
    }

    #[test]
    fn the_longer_digest_wins_and_a_contradiction_is_an_error() {
        let both = format!("{}  x\n{}  x\n", "ab".repeat(32), "ef".repeat(64));
        assert_eq!(find(&both, "x").unwrap().algorithm(), Algorithm::Sha512);
        let twice = format!("{}  x\n{}  x\n", "ab".repeat(32), "ab".repeat(32));
        assert_eq!(find(&twice, "x").unwrap(), digest("ab"));
        let torn = format!("{}  x\n{}  x\n", "ab".repeat(32), "cd".repeat(32));
        assert!(find(&torn, "x").unwrap_err().message().contains("two digests"));
    }

    #[test]
    fn a_page_is_told_to_be_no_checksum_file() {
        let e = find("<!DOCTYPE html>\n<html></html>\n", "x").unwrap_err();
        assert!(e.hint_text().unwrap().contains("is it a checksum file"));
    }

    #[test]
    fn a_pin_takes_the_new_digest_and_forgets_the_old_size() {
        let pin = Pin {
            url: "https://images.example.org/d/image-9-20260101.0.qcow2".into(),
            mirrors: vec![],
            size: Some(5),
            digest: digest("00"),
            sums_url: None,
            newest: None,
            note: None,
        };
        let new = pin_from_sums(&pin, &fixture("bsd.txt")).unwrap();
        assert_eq!((new.digest, new.size), (digest("ab"), None));
        let same = pin_from_sums(&Pin { size: Some(7), ..new }, &fixture("bsd.txt")).unwrap();
        assert_eq!(same.size, Some(7));
        let both = format!("{}{}  image-9-20260101.0.qcow2\n", fixture("gnu.txt"), "ef".repeat(64));
        assert_eq!(pin_from_sums(&pin, &both).unwrap().digest, digest("ab"), "its own algorithm");
    }
}

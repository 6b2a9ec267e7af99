//! When bytes from two answers belong to the same file.
//!
//! A server may answer 200 to a range request, or 206 with the range of a file that has changed
//! since: appending either corrupts the file. A download is taken up only under the validator that
//! its first part came with (`If-Range`), and only when the answer says that it begins exactly
//! where the first part ends.

use serde::{Deserialize, Serialize};

/// Where a partial file comes from. Kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// As it stands in the manifest, before redirects.
    pub url: String,
    pub etag: Option<String>,
    pub last_modified: Option<String>,
    /// Bytes of the whole file, where the server told.
    pub total: Option<u64>,
}

impl Origin {
    /// What `If-Range` may carry: a strong ETag, else a date. A weak ETag vouches for the meaning
    /// of a file, not for its bytes (RFC 9110, 13.1.5).
    pub fn validator(&self) -> Option<&str> {
        match &self.etag {
            Some(etag) if !etag.starts_with("W/") => Some(etag),
            _ => self.last_modified.as_deref(),
        }
    }
}

/// A `Content-Range: bytes FIRST-LAST/TOTAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    pub first: u64,
    pub last: u64,
    pub total: Option<u64>,
}

impl ContentRange {
    pub fn parse(header: &str) -> Option<ContentRange> {
        let (unit, rest) = header.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = match total {
            "*" => None,
            n => Some(n.parse().ok()?),
        };
        let range = ContentRange { first: first.parse().ok()?, last: last.parse().ok()?, total };
        let whole = range.total.is_none_or(|t| range.last < t);
        (unit.eq_ignore_ascii_case("bytes") && range.first <= range.last && whole).then_some(range)
    }

    /// Whether this is all that is missing of the file that began with `have` bytes.
    pub fn continues(&self, have: u64, origin: &Origin) -> bool {
        let same_size = match (self.total, origin.total) {
            (Some(now), Some(then)) => now == then,
            _ => true,
        };
        let to_the_end = self.total.is_none_or(|t| self.last + 1 == t);
        self.first == have && to_the_end && same_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(etag: Option<&str>, date: Option<&str>) -> Origin {
        Origin {
            url: "http://h/x".into(),
            etag: etag.map(Into::into),
            last_modified: date.map(Into::into),
            total: Some(10),
        }
    }

    #[test]
    fn only_strong_validators_vouch_for_bytes() {
        assert_eq!(origin(Some("\"a\""), Some("d")).validator(), Some("\"a\""));
        assert_eq!(origin(Some("W/\"a\""), Some("d")).validator(), Some("d"));
        assert_eq!(origin(Some("W/\"a\""), None).validator(), None);
        assert_eq!(origin(None, None).validator(), None);
    }

    #[test]
    fn a_range_continues_only_from_its_byte_to_the_end_of_the_same_file() {
        let o = origin(None, None);
        let continues = |h: &str| ContentRange::parse(h).is_some_and(|r| r.continues(4, &o));
        assert!(continues("bytes 4-9/10"));
        assert!(continues("Bytes 4-9/*"));
        for wrong in [
            "bytes 5-9/10",
            "bytes 3-9/10",
            "bytes 4-8/10",
            "bytes 4-10/11",
            "bytes 4-10/10",
            "bytes 9-4/10",
            "bytes */10",
            "items 4-9/10",
            "bytes 4-9",
            "bytes -4-9/10",
            "bytes 4-99999999999999999999/10",
            "",
        ] {
            assert!(!continues(wrong), "{wrong}");
        }
    }
}

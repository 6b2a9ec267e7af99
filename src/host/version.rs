//! Versions, compared as Debian compares them (Policy 5.6.12).

use std::cmp::Ordering;

/// Compares `[epoch:]upstream[-revision]`.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a_epoch, a_rest) = epoch(a);
    let (b_epoch, b_rest) = epoch(b);
    let (a_upstream, a_revision) = a_rest.rsplit_once('-').unwrap_or((a_rest, ""));
    let (b_upstream, b_revision) = b_rest.rsplit_once('-').unwrap_or((b_rest, ""));
    a_epoch
        .cmp(&b_epoch)
        .then_with(|| part(a_upstream, b_upstream))
        .then_with(|| part(a_revision, b_revision))
}

fn epoch(version: &str) -> (u64, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    }
}

/// Non-digits and digits in turn: a tilde before everything, even the end; letters before the
/// rest; numbers by value.
fn part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        let (a_text, a_rest) = split(a, |c| !c.is_ascii_digit());
        let (b_text, b_rest) = split(b, |c| !c.is_ascii_digit());
        for i in 0..a_text.len().max(b_text.len()) {
            match rank(a_text.get(i)).cmp(&rank(b_text.get(i))) {
                Ordering::Equal => {}
                other => return other,
            }
        }
        let (a_number, a_rest) = split(a_rest, u8::is_ascii_digit);
        let (b_number, b_rest) = split(b_rest, u8::is_ascii_digit);
        let (a_number, b_number) = (significant(a_number), significant(b_number));
        match a_number.len().cmp(&b_number.len()).then_with(|| a_number.cmp(b_number)) {
            Ordering::Equal => (a, b) = (a_rest, b_rest),
            other => return other,
        }
    }
    Ordering::Equal
}

fn split(bytes: &[u8], keep: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.iter().position(|c| !keep(c)).unwrap_or(bytes.len()))
}

fn significant(digits: &[u8]) -> &[u8] {
    &digits[digits.iter().position(|d| *d != b'0').unwrap_or(digits.len())..]
}

fn rank(c: Option<&u8>) -> i32 {
    match c {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

/// The first dotted number in what a tool says of itself: `QEMU emulator version 10.0.2 (…)`.
pub fn in_text(text: &str) -> Option<&str> {
    text.split(|c: char| c.is_whitespace() || "(),".contains(c)).find_map(|word| {
        let word = word.trim_start_matches('v');
        let number = word.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?;
        let number = number.trim_end_matches('.');
        (number.contains('.') && number.starts_with(|c: char| c.is_ascii_digit())).then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        let ascending = [
            "0.9~rc1-1",
            "0.9-1",
            "0.9a-1",
            "0.9+dfsg-1",
            "0.10-1",
            "7.2+dfsg-7+deb12u13",
            "9.2.0~rc1",
            "9.2.0",
            "10.0.2+ds-2+deb13u1~bpo12+1",
            "10.0.2+ds-2+deb13u1",
            "1:0.1",
            "1:10.0.2+ds-2+deb13u1~bpo12+1",
            "1:10.0.2+ds-2+deb13u1",
        ];
        for pair in ascending.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("1.00", "1.0"), Ordering::Equal);
        assert_eq!(compare("0:1.2-0", "1.2"), Ordering::Equal);
    }

    #[test]
    fn a_tools_version_is_found_in_what_it_says() {
        let qemu = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(in_text(qemu), Some("10.0.2"));
        assert_eq!(in_text("mke2fs 1.47.0 (5-Feb-2023)"), Some("1.47.0"));
        assert_eq!(in_text("apt 2.6.1 (amd64)"), Some("2.6.1"));
        assert_eq!(
            in_text("Debian 'dpkg-deb' package archive backend version 1.21.22 (amd64)."),
            Some("1.21.22")
        );
        assert_eq!(in_text("no number"), None);
    }
}

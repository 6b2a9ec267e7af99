//! Hardware addresses.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// An Ethernet address. Text is read as a unicast address only, and printed in lower case, as
/// cloud-init wants it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// True for broadcast and multicast.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The address of a NIC that was given none: the same in every run, so that a restored node
    /// finds its NICs; under QEMU's locally administered prefix 52:54:00.
    pub fn derived(lab: &str, node: &str, network: &str) -> Mac {
        // A separator that no name can hold: ("ab", "c") must differ from ("a", "bc").
        let digest = Sha256::digest(format!("{lab}\0{node}\0{network}"));
        Mac([0x52, 0x54, 0x00, digest[0], digest[1], digest[2]])
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Mac, Self::Err> {
        let mut mac = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            // `from_str_radix` alone would take a sign.
            let pair = |p: &&str| p.len() == 2 && p.bytes().all(|c| c.is_ascii_hexdigit());
            let part = parts.next().filter(pair).ok_or("six pairs of hex digits")?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| "six pairs of hex digits")?;
        }
        if parts.next().is_some() {
            return Err("six pairs of hex digits");
        }
        if mac[0] & 1 != 0 {
            return Err("a unicast address (the first byte must be even)");
        }
        if mac == [0; 6] {
            return Err("an address other than zero");
        }
        Ok(Mac(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_addresses_are_stable_local_unicast_and_depend_on_every_name() {
        let mac = Mac::derived("two-node", "openstack1", "management");
        assert_eq!(mac, Mac::derived("two-node", "openstack1", "management"));
        assert_eq!(&mac.0[..3], &[0x52, 0x54, 0x00]);
        assert_ne!(mac, Mac::derived("two-node", "openstack1", "external"));
        assert_ne!(mac, Mac::derived("two-node", "openstack2", "management"));
        assert_ne!(mac, Mac::derived("other", "openstack1", "management"));
        assert_ne!(Mac::derived("ab", "c", "n"), Mac::derived("a", "bc", "n"));
    }

    #[test]
    fn text_reads_in_any_case_and_prints_in_lower_case() {
        let mac: Mac = "52:54:00:AB:cd:0E".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0e");
    }

    #[test]
    fn what_is_no_unicast_address_is_refused() {
        for bad in [
            "",
            "52:54:00:00:00",
            "52:54:00:00:00:00:00",
            "52-54-00-00-00-01",
            "5:54:0:0:0:1",
            "52:54:00:00:00:zz",
            "53:54:00:00:00:01",
            "00:00:00:00:00:00",
            "+2:54:00:00:00:01",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}

//! The units that a lab file is written in.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A number of bytes, written with a binary unit: `512MiB`, `6GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

impl FromStr for Bytes {
    type Err = ();

    fn from_str(text: &str) -> Result<Bytes, ()> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(())?;
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim_start_matches(' ') {
            "KiB" => KIB,
            "MiB" => MIB,
            "GiB" => GIB,
            "TiB" => GIB << 10,
            _ => return Err(()),
        };
        let number: u64 = number.parse().map_err(|_| ())?;
        number.checked_mul(unit).map(Bytes).ok_or(())
    }
}

/// In the largest unit that leaves a number of three digits or so.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 >= unit {
                return match self.0 % unit {
                    0 => write!(f, "{} {name}", self.0 / unit),
                    _ => write!(f, "{:.1} {name}", self.0 as f64 / unit as f64),
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// An IPv4 network: `192.168.103.0/24`. Its host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub address: Ipv4Addr,
    /// From 8 to 30.
    pub prefix: u8,
}

impl Subnet {
    fn mask(self) -> u32 {
        u32::MAX << (32 - self.prefix)
    }
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.address.to_bits()
    }
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask())
    }
    pub fn overlaps(self, other: Subnet) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl FromStr for Subnet {
    type Err = ();

    fn from_str(text: &str) -> Result<Subnet, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        let address: Ipv4Addr = address.parse().map_err(|_| ())?;
        let prefix: u8 = prefix.parse().map_err(|_| ())?;
        if !(8..=30).contains(&prefix) {
            return Err(());
        }
        let subnet = Subnet { address, prefix };
        if subnet.contains(address) { Ok(subnet) } else { Err(()) }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_binary_unit_and_fit_in_64_bits() {
        assert_eq!("6GiB".parse(), Ok(Bytes(6 << 30)));
        assert_eq!("20 MiB".parse(), Ok(Bytes(20 << 20)));
        for bad in ["", "6", "6GB", "6G", "GiB", "-1GiB", "1.5GiB", "99999999999TiB"] {
            assert_eq!(bad.parse::<Bytes>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn sizes_print_short() {
        let shown = [0, 1023, 1 << 20, 3 << 29, 6 << 30].map(|b| Bytes(b).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1 MiB", "1.5 GiB", "6 GiB"]);
    }

    #[test]
    fn subnets_have_no_host_bits_and_know_their_edges() {
        let net: Subnet = "192.168.103.0/24".parse().unwrap();
        assert!(net.contains(Ipv4Addr::new(192, 168, 103, 255)));
        assert!(!net.contains(Ipv4Addr::new(192, 168, 104, 0)));
        assert_eq!(net.broadcast(), Ipv4Addr::new(192, 168, 103, 255));
        assert!(net.overlaps("192.168.0.0/16".parse().unwrap()));
        assert!(!net.overlaps("172.24.4.0/24".parse().unwrap()));
        for bad in ["192.168.103.1/24", "192.168.103.0", "10.0.0.0/31", "10.0.0.0/x", "0.0.0.0/0"] {
            assert_eq!(bad.parse::<Subnet>(), Err(()), "{bad}");
        }
    }
}

//! An NTP server's answer (RFC 5905), from the host's clock. Pure: a request in, a reply out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) const PORT: u16 = 123;

/// Length of a packet without extensions and without authentication.
pub(super) const LENGTH: usize = 48;

/// Seconds from 1900 to 1970.
const ERA: u64 = 2_208_988_800;

const CLIENT: u8 = 3;
const SERVER: u8 = 4;

/// Second stratum: one from a reference clock. The host's clock is taken for a good one, since
/// what the nodes need is one time for all, that of the machine that judges them.
const STRATUM: u8 = 2;

/// 2^-20 s, a microsecond.
const PRECISION: i8 = -20;

/// What chronyd itself gives as the reference of a host's own clock, 127.127.1.1: equal to no
/// address of a node, which would look like a loop.
const REFERENCE: [u8; 4] = [127, 127, 1, 1];

/// Root delay and root dispersion, in units of 2^-16 s: 1 ms and 10 ms, far below the 3 s where
/// a client gives a source up.
const ROOT_DELAY: u32 = 66;
const ROOT_DISPERSION: u32 = 655;

/// How long before the answer the host's clock is said to have been set.
const SINCE_SET: Duration = Duration::from_secs(16);

/// The answer to a client's request, or `None` when it is none.
pub(super) fn answer(
    request: &[u8],
    received: SystemTime,
    sent: SystemTime,
) -> Option<[u8; LENGTH]> {
    let head = request.first_chunk::<LENGTH>()?;
    let (version, mode) = (head[0] >> 3 & 7, head[0] & 7);
    if mode != CLIENT || !(1..=4).contains(&version) {
        return None;
    }
    let mut reply = [0; LENGTH];
    // The leap indicator stays 0: no leap second ahead, and the clock is synchronized.
    reply[0] = version << 3 | SERVER;
    reply[1] = STRATUM;
    reply[2] = head[2];
    reply[3] = PRECISION as u8;
    reply[4..8].copy_from_slice(&ROOT_DELAY.to_be_bytes());
    reply[8..12].copy_from_slice(&ROOT_DISPERSION.to_be_bytes());
    reply[12..16].copy_from_slice(&REFERENCE);
    reply[16..24].copy_from_slice(&timestamp(received - SINCE_SET).to_be_bytes());
    reply[24..32].copy_from_slice(&head[40..48]);
    reply[32..40].copy_from_slice(&timestamp(received).to_be_bytes());
    reply[40..48].copy_from_slice(&timestamp(sent).to_be_bytes());
    Some(reply)
}

/// Seconds since 1900 in the upper half (they wrap in 2036, as the format wants), fractions of
/// 2^-32 s in the lower.
fn timestamp(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    (since.as_secs() + ERA) << 32 | fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: u8, mode: u8) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = version << 3 | mode;
        bytes[2] = 6;
        bytes[40..48].copy_from_slice(&0x0123_4567_89ab_cdefu64.to_be_bytes());
        bytes
    }

    #[test]
    fn the_answer_has_what_a_client_checks() {
        let received = UNIX_EPOCH + Duration::new(1_700_000_000, 500_000_000);
        let sent = received + Duration::from_micros(30);
        for version in [3, 4] {
            let reply = answer(&request(version, CLIENT), received, sent).unwrap();
            let field = |at: usize| u64::from_be_bytes(*reply[at..].first_chunk::<8>().unwrap());
            assert_eq!(reply[0], version << 3 | SERVER, "leap 0, same version, server");
            assert!((1..16).contains(&reply[1]), "a stratum that is synchronized");
            assert_eq!(reply[2], 6, "the client's poll interval");
            assert_eq!(field(24), 0x0123_4567_89ab_cdef, "the client's own transmit time");
            assert_eq!(field(32) >> 32, 1_700_000_000 + ERA);
            assert_eq!(field(32) as u32, 1 << 31, "half a second");
            assert!(field(40) > field(32), "sent after it was received");
            assert!(field(16) < field(32), "set before it was asked");
        }
    }

    #[test]
    fn what_is_no_clients_request_gets_no_answer() {
        let now = SystemTime::now();
        for mode in [0, 1, 2, SERVER, 5, 6, 7] {
            assert_eq!(answer(&request(4, mode), now, now), None);
        }
        assert_eq!(answer(&request(0, CLIENT), now, now), None);
        assert_eq!(answer(&request(7, CLIENT), now, now), None);
        assert_eq!(answer(&request(4, CLIENT)[..47], now, now), None);
    }

    #[test]
    fn extensions_behind_the_request_are_ignored() {
        let now = SystemTime::now();
        let long = [&request(4, CLIENT)[..], &[7; 28]].concat();
        assert!(answer(&long, now, now).is_some());
    }
}

//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng), little-endian, times in nanoseconds.
//! Pure: fields in, bytes out.

use super::impairment::Direction;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

const ETHERNET: u16 = 1;

/// The options used; each number means something else in another block.
const END: u16 = 0;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;

/// The bytes of one packet block beside its frame, without the padding of that.
const PACKET_OVERHEAD: usize = 44;

/// The bytes of [`statistics`].
pub(super) const STATISTICS_LENGTH: usize = 52;

/// Starts the file.
pub(super) fn section(out: &mut Vec<u8>, application: &str) {
    block(out, SECTION, |out| {
        out.extend(0x1a2b_3c4d_u32.to_le_bytes());
        out.extend(1u16.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        // The length of the section is not known.
        out.extend(u64::MAX.to_le_bytes());
        option(out, SECTION_APPLICATION, application.as_bytes());
        option(out, END, &[]);
    });
}

/// An interface; they are numbered from 0 in the order of their blocks.
pub(super) fn interface(out: &mut Vec<u8>, name: &str) {
    block(out, INTERFACE, |out| {
        out.extend(ETHERNET.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        // Frames are kept whole.
        out.extend(0u32.to_le_bytes());
        option(out, INTERFACE_NAME, name.as_bytes());
        option(out, INTERFACE_RESOLUTION, &[9]);
        option(out, END, &[]);
    });
}

/// One frame, at `nanos` since 1970. The direction is told as the machine sees it.
pub(super) fn packet(
    out: &mut Vec<u8>,
    interface: u32,
    nanos: u64,
    direction: Direction,
    frame: &[u8],
) {
    let flags: u32 = match direction {
        Direction::To => 1,   // inbound
        Direction::From => 2, // outbound
    };
    block(out, PACKET, |out| {
        out.extend(interface.to_le_bytes());
        stamp(out, nanos);
        out.extend((frame.len() as u32).to_le_bytes());
        out.extend((frame.len() as u32).to_le_bytes());
        out.extend_from_slice(frame);
        pad(out, frame.len());
        option(out, PACKET_FLAGS, &flags.to_le_bytes());
        option(out, END, &[]);
    });
}

/// The length of the block that [`packet`] makes.
pub(super) fn packet_length(frame: usize) -> usize {
    PACKET_OVERHEAD + frame.next_multiple_of(4)
}

/// What an interface counted until `nanos` since 1970: frames seen, and of these those that are
/// not in the file.
pub(super) fn statistics(out: &mut Vec<u8>, interface: u32, nanos: u64, seen: u64, dropped: u64) {
    block(out, STATISTICS, |out| {
        out.extend(interface.to_le_bytes());
        stamp(out, nanos);
        option(out, STATISTICS_RECEIVED, &seen.to_le_bytes());
        option(out, STATISTICS_DROPPED, &dropped.to_le_bytes());
        option(out, END, &[]);
    });
}

/// The upper half first, whatever the byte order.
fn stamp(out: &mut Vec<u8>, nanos: u64) {
    out.extend(((nanos >> 32) as u32).to_le_bytes());
    out.extend((nanos as u32).to_le_bytes());
}

/// The length is before the body and behind it.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let length = ((out.len() - start + 4) as u32).to_le_bytes();
    out.extend(length);
    out[start + 4..start + 8].copy_from_slice(&length);
}

/// `value` is shorter than 64 KiB: names, numbers.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// To a multiple of four bytes.
fn pad(out: &mut Vec<u8>, length: usize) {
    out.extend(std::iter::repeat_n(0, length.next_multiple_of(4) - length));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_block_is_these_bytes() {
        let mut out = Vec::new();
        packet(&mut out, 3, 0x1_0000_0002, Direction::From, b"abcde");
        #[rustfmt::skip]
        let block = [
            6, 0, 0, 0,  52, 0, 0, 0,  3, 0, 0, 0,  1, 0, 0, 0,  2, 0, 0, 0,  5, 0, 0, 0,
            5, 0, 0, 0,  b'a', b'b', b'c', b'd', b'e', 0, 0, 0,  2, 0, 4, 0,  2, 0, 0, 0,
            0, 0, 0, 0,  52, 0, 0, 0,
        ];
        assert_eq!(out, block);
    }

    #[test]
    fn the_lengths_told_ahead_are_those_of_the_blocks() {
        for length in 0..70 {
            let mut out = Vec::new();
            packet(&mut out, 0, 0, Direction::To, &vec![0; length]);
            assert_eq!(out.len(), packet_length(length));
        }
        let mut out = Vec::new();
        statistics(&mut out, 0, 0, 1, 2);
        assert_eq!(out.len(), STATISTICS_LENGTH);
    }
}

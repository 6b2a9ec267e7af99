//! The header of a qcow2 file, read from its bytes, and what in it may not enter.
//!
//! A crafted header makes whoever opens the image read other files of the host (CVE-2024-32498:
//! the name of an external data file; backing files do the same). QEMU's own tools follow such
//! names while they *look* at an image, so the header is judged here, on bytes, before any tool
//! sees the file. The format: docs/interop/qcow2.txt of QEMU. All numbers are big-endian.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Enough bytes from the start of a file for [`parse`], whatever its cluster size: the header and
/// its extensions lie in the first cluster.
pub const HEAD: usize = 2 << 20;

const V2_LEN: usize = 72;
const V3_LEN: usize = 104;

/// Limits that QEMU itself keeps (block/qcow2.h).
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;

/// Virtual sizes above this are taken for an attack or a mistake: it sizes disks and flavors.
pub const MAX_VIRTUAL_SIZE: u64 = 2 << 40;

mod incompatible {
    pub const DIRTY: u64 = 1;
    pub const CORRUPT: u64 = 1 << 1;
    pub const DATA_FILE: u64 = 1 << 2;
    pub const COMPRESSION: u64 = 1 << 3;
    pub const EXTENDED_L2: u64 = 1 << 4;
    pub const KNOWN: u64 = 0x1f;
}

mod extension {
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const DATA_FILE: u32 = 0x4441_5441;
    pub const FULL_DISK_ENCRYPTION: u32 = 0x0537_be77;
}

/// The fields of a header, as they stand in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    pub backing_file_offset: u64,
    pub backing_file_size: u32,
    pub cluster_bits: u32,
    /// Bytes of the disk that a guest sees.
    pub virtual_size: u64,
    pub crypt_method: u32,
    /// Entries of 8 bytes.
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub header_length: u32,
    /// 0 is zlib, 1 is zstd.
    pub compression: u8,
    /// The types of the header extensions, in their order.
    pub extensions: Vec<u32>,
}

/// Why bytes are not a readable qcow2 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    NotQcow2,
    Truncated { have: usize, need: usize },
    Version(u32),
    ClusterBits(u32),
    HeaderLength(u32),
    Extension { kind: u32, length: u32 },
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::NotQcow2 => f.write_str("it does not begin with the qcow2 magic"),
            Unreadable::Truncated { have, need } => {
                write!(f, "the header is cut off: {have} bytes are here, {need} are needed")
            }
            Unreadable::Version(v) => write!(f, "qcow2 version {v} is unknown: 2 and 3 exist"),
            Unreadable::ClusterBits(b) => {
                write!(f, "clusters of 2^{b} bytes: only 2^9 to 2^21 exist")
            }
            Unreadable::HeaderLength(n) => write!(f, "a header length of {n} bytes is impossible"),
            Unreadable::Extension { kind, length } => {
                write!(f, "the header extension 0x{kind:08x} of {length} bytes leaves its cluster")
            }
        }
    }
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&self, at: usize) -> Result<[u8; N], Unreadable> {
        self.0
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .ok_or(Unreadable::Truncated { have: self.0.len(), need: at.saturating_add(N) })
    }
    fn u32(&self, at: usize) -> Result<u32, Unreadable> {
        self.take(at).map(u32::from_be_bytes)
    }
    fn u64(&self, at: usize) -> Result<u64, Unreadable> {
        self.take(at).map(u64::from_be_bytes)
    }
}

/// Reads the header from the first bytes of a file ([`HEAD`] of them, or the whole file). Never
/// panics, whatever the bytes.
pub fn parse(head: &[u8]) -> Result<Header, Unreadable> {
    let b = Bytes(head);
    if !head.starts_with(&MAGIC) {
        return Err(Unreadable::NotQcow2);
    }
    let version = b.u32(4)?;
    if !matches!(version, 2 | 3) {
        return Err(Unreadable::Version(version));
    }
    let cluster_bits = b.u32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Unreadable::ClusterBits(cluster_bits));
    }
    let cluster = 1usize << cluster_bits;
    let v3 = version == 3;
    let header_length = if v3 { b.u32(100)? } else { V2_LEN as u32 };
    let extensions_at = header_length as usize;
    if v3 && (extensions_at < V3_LEN || !extensions_at.is_multiple_of(8) || extensions_at > cluster)
    {
        return Err(Unreadable::HeaderLength(header_length));
    }
    Ok(Header {
        version,
        backing_file_offset: b.u64(8)?,
        backing_file_size: b.u32(16)?,
        cluster_bits,
        virtual_size: b.u64(24)?,
        crypt_method: b.u32(32)?,
        l1_size: b.u32(36)?,
        l1_table_offset: b.u64(40)?,
        refcount_table_offset: b.u64(48)?,
        refcount_table_clusters: b.u32(56)?,
        snapshots: b.u32(60)?,
        snapshots_offset: b.u64(64)?,
        incompatible: if v3 { b.u64(72)? } else { 0 },
        compatible: if v3 { b.u64(80)? } else { 0 },
        autoclear: if v3 { b.u64(88)? } else { 0 },
        refcount_order: if v3 { b.u32(96)? } else { 4 },
        header_length,
        compression: if v3 && extensions_at > V3_LEN { b.take::<1>(V3_LEN)?[0] } else { 0 },
        extensions: extensions(&b, extensions_at, cluster)?,
    })
}

/// Walks the extensions up to their end mark or the end of the first cluster.
fn extensions(b: &Bytes<'_>, start: usize, cluster: usize) -> Result<Vec<u32>, Unreadable> {
    let mut found = Vec::new();
    let mut at = start;
    while at + 8 <= cluster {
        let (kind, length) = (b.u32(at)?, b.u32(at + 4)?);
        if kind == extension::END {
            break;
        }
        // The data is padded to a multiple of 8.
        let next = (at + 8).saturating_add((length as usize).next_multiple_of(8));
        if next > cluster {
            return Err(Unreadable::Extension { kind, length });
        }
        found.push(kind);
        at = next;
    }
    Ok(found)
}

impl Header {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Why this image may not enter; empty when it may. `file_len` is the length of the file.
    pub fn dangers(&self, file_len: u64) -> Vec<String> {
        let mut found = Vec::new();
        let mut say = |bad: bool, what: String| {
            if bad {
                found.push(what);
            }
        };
        say(
            self.backing_file_offset != 0 || self.backing_file_size != 0,
            "it names a backing file: whoever opens it would read that file of the host".into(),
        );
        say(
            self.extensions.contains(&extension::BACKING_FORMAT),
            "it has a backing-format extension, which only images with a backing file need".into(),
        );
        say(
            self.incompatible & incompatible::DATA_FILE != 0
                || self.autoclear & 2 != 0
                || self.extensions.contains(&extension::DATA_FILE),
            "it names an external data file: whoever opens it would read that file of the host \
             (CVE-2024-32498)"
                .into(),
        );
        say(
            self.crypt_method != 0 || self.extensions.contains(&extension::FULL_DISK_ENCRYPTION),
            format!("it is encrypted (method {})", self.crypt_method),
        );
        say(
            self.incompatible & incompatible::CORRUPT != 0,
            "its corrupt bit is set: it was found damaged by QEMU".into(),
        );
        let unknown = self.incompatible & !incompatible::KNOWN;
        say(unknown != 0, format!("it needs features that are unknown here (bits 0x{unknown:x})"));
        say(self.virtual_size == 0, "its disk has no bytes".into());
        say(
            self.virtual_size > MAX_VIRTUAL_SIZE,
            format!(
                "its virtual size of {} bytes is above the limit of {MAX_VIRTUAL_SIZE}",
                self.virtual_size
            ),
        );
        say(self.refcount_order > 6, format!("its refcounts of 2^{} bits", self.refcount_order));
        let packed = self.incompatible & incompatible::COMPRESSION != 0;
        say(
            self.compression > 1 || packed != (self.compression != 0),
            format!("its compression type {} contradicts its feature bits", self.compression),
        );
        let extended = self.incompatible & incompatible::EXTENDED_L2 != 0;
        say(
            extended && self.cluster_bits < 14,
            "it has extended L2 entries in clusters under 16 KiB".into(),
        );

        let needed = self.virtual_size.div_ceil(self.bytes_per_l1_entry(extended));
        let l1_bytes = u64::from(self.l1_size) * 8;
        say(
            u64::from(self.l1_size) < needed,
            format!("its L1 table has {} entries, its size needs {needed}", self.l1_size),
        );
        say(l1_bytes > MAX_L1_BYTES, format!("its L1 table of {l1_bytes} bytes"));
        say(
            self.l1_size > 0 && !self.lies_within(self.l1_table_offset, l1_bytes, file_len),
            "its L1 table lies outside of the file: it is cut off or crafted".into(),
        );
        let table = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        say(
            table == 0 || table > MAX_REFCOUNT_TABLE_BYTES,
            format!("its refcount table of {table} bytes"),
        );
        say(
            !self.lies_within(self.refcount_table_offset, table, file_len),
            "its refcount table lies outside of the file: it is cut off or crafted".into(),
        );
        say(self.snapshots > MAX_SNAPSHOTS, format!("its {} snapshots", self.snapshots));
        say(
            // 40 bytes is the least that an entry of the snapshot table has.
            self.snapshots > 0
                && !self.lies_within(
                    self.snapshots_offset,
                    u64::from(self.snapshots) * 40,
                    file_len,
                ),
            "its snapshot table lies outside of the file: it is cut off or crafted".into(),
        );
        found
    }

    /// What a reader may want to know of an image that may enter.
    pub fn features(&self) -> Vec<String> {
        let mut found = vec![format!("version {}", self.version)];
        found.push(format!("clusters of {} KiB", self.cluster_size() as f64 / 1024.0));
        if self.incompatible & incompatible::DIRTY != 0 {
            found.push("dirty: it was not closed properly".into());
        }
        if self.compression == 1 {
            found.push("zstd compression".into());
        }
        if self.incompatible & incompatible::EXTENDED_L2 != 0 {
            found.push("extended L2 entries".into());
        }
        if self.snapshots > 0 {
            found.push(format!("{} internal snapshots (not used)", self.snapshots));
        }
        found
    }

    /// Why Glance and Nova refuse an image that may enter here: oslo.utils knows the incompatible
    /// features 0 to 3 (`I_FEATURES_MAX_BIT` of its format inspector).
    pub fn cloud_refuses(&self) -> Vec<String> {
        let extended = self.incompatible & incompatible::EXTENDED_L2 != 0;
        let what = "OpenStack refuses its extended L2 entries as an unknown feature";
        extended.then(|| what.to_owned()).into_iter().collect()
    }

    fn bytes_per_l1_entry(&self, extended: bool) -> u64 {
        let l2_entry = if extended { 16 } else { 8 };
        self.cluster_size() * (self.cluster_size() / l2_entry)
    }

    /// Tables begin at a cluster behind the header. The last cluster of a file may be short.
    fn lies_within(&self, offset: u64, len: u64, file_len: u64) -> bool {
        offset != 0
            && offset.is_multiple_of(self.cluster_size())
            && offset < file_len
            && offset.checked_add(len).is_some_and(|end| end <= file_len)
    }
}

/// Masks of an L1 or L2 entry, and what an L2 entry says.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// No more of the L2 tables is read: enough for 32 TiB in clusters of 64 KiB would be more.
const MAX_TABLES_READ: u64 = 256 << 20;

/// Why the file ends before its content, if it does: a table or a cluster of the guest's lies beyond
/// its end, as in a download that was cut off. `header` has no [`Header::dangers`].
pub fn cut_off(
    file: &mut (impl Read + Seek),
    header: &Header,
    file_len: u64,
) -> io::Result<Option<String>> {
    let cluster = header.cluster_size();
    let say = |what: &str, at: u64| {
        Some(format!(
            "its {what} at byte {at} lies behind the end of the file ({file_len}): it is cut off"
        ))
    };
    let table = u64::from(header.refcount_table_clusters) << header.cluster_bits;
    for block in entries(file, header.refcount_table_offset, table)? {
        let block = block & !0x1ff;
        if block != 0 && block.saturating_add(cluster) > file_len {
            return Ok(say("refcount block", block));
        }
    }
    let extended = header.incompatible & incompatible::EXTENDED_L2 != 0;
    let step = if extended { 2 } else { 1 };
    let mut read = 0;
    for l2 in entries(file, header.l1_table_offset, u64::from(header.l1_size) * 8)? {
        let l2 = l2 & OFFSET;
        if l2 == 0 {
            continue;
        }
        if l2.saturating_add(cluster) > file_len {
            return Ok(say("L2 table", l2));
        }
        read += cluster;
        if read > MAX_TABLES_READ {
            break;
        }
        for entry in entries(file, l2, cluster)?.into_iter().step_by(step) {
            let at = if entry & COMPRESSED != 0 {
                entry & ((1 << (62 - (header.cluster_bits - 8))) - 1)
            } else {
                entry & OFFSET
            };
            // The last cluster may be short, so only its beginning counts.
            if at >= file_len {
                return Ok(say("cluster", at));
            }
        }
    }
    Ok(None)
}

/// The big-endian numbers of a table.
fn entries(file: &mut (impl Read + Seek), offset: u64, bytes: u64) -> io::Result<Vec<u64>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut table = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
    file.read_exact(&mut table)?;
    let number = |entry: &[u8]| u64::from_be_bytes(entry.try_into().expect("eight bytes"));
    Ok(table.chunks_exact(8).map(number).collect())
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;

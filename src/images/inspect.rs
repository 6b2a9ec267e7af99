//! What a file really is, told from its bytes.
//!
//! Only reads. No tool is started on a file that is being inspected: QEMU's tools follow the names
//! in a header while they look at it.

use super::manifest::Format;
use super::qcow2;
use crate::error::{Context, Error, Kind, Result};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes that [`sniff`] needs to tell every kind apart (ISO 9660 names itself at 32769).
pub const SNIFF: usize = 36 << 10;

const SECTOR: u64 = 512;

/// What the first bytes look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looks {
    Empty,
    Qcow2,
    /// A web page. S4.10 (b): a server answered with one, and it was saved as an image.
    Page,
    /// Other text, and its first line.
    Text(String),
    /// Compressed, with the tool that undoes it.
    Compressed(&'static str),
    /// An image of a format that is not taken here.
    Foreign(&'static str),
    /// A disk with a boot sector (`55 AA`).
    Disk,
    /// Nothing that is known.
    Unknown,
}

impl fmt::Display for Looks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Looks::Empty => f.write_str("an empty file"),
            Looks::Qcow2 => f.write_str("a qcow2 image"),
            Looks::Page => f.write_str("a web page"),
            Looks::Text(first) => write!(f, "a text that begins `{first}`"),
            Looks::Compressed(tool) => {
                write!(f, "a file compressed with {tool}: decompress it first (`{tool} -d`)")
            }
            Looks::Foreign(what) => {
                write!(f, "{what}: convert it with `qemu-img convert -O qcow2` if you trust it")
            }
            Looks::Disk => f.write_str("a raw disk with a boot sector"),
            Looks::Unknown => f.write_str("no image format that is known here"),
        }
    }
}

/// Judges the first bytes of a file ([`SNIFF`] of them, or all there are).
pub fn sniff(head: &[u8]) -> Looks {
    if head.is_empty() {
        return Looks::Empty;
    }
    let starts = |magic: &[u8]| head.starts_with(magic);
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if starts(&qcow2::MAGIC) {
        Looks::Qcow2
    } else if starts(b"\x1f\x8b") {
        Looks::Compressed("gzip")
    } else if starts(b"\xfd7zXZ\0") {
        Looks::Compressed("xz")
    } else if starts(b"\x28\xb5\x2f\xfd") {
        Looks::Compressed("zstd")
    } else if starts(b"BZh") && head.get(3).is_some_and(u8::is_ascii_digit) {
        Looks::Compressed("bzip2")
    } else if starts(b"PK\x03\x04") {
        Looks::Foreign("a zip archive")
    } else if starts(b"KDMV") || starts(b"# Disk DescriptorFile") {
        Looks::Foreign("a VMDK image")
    } else if has(64, b"\x7f\x10\xda\xbe") {
        Looks::Foreign("a VDI image")
    } else if starts(b"vhdxfile") {
        Looks::Foreign("a VHDX image")
    } else if starts(b"conectix") {
        Looks::Foreign("a VHD image")
    } else if starts(b"\x7fELF") {
        Looks::Foreign("an ELF program")
    } else if has(257, b"ustar") {
        Looks::Foreign("a tar archive")
    } else if let Some(looks) = text(head) {
        looks
    } else if has(510, b"\x55\xaa") {
        Looks::Disk
    } else if has(32769, b"CD001") {
        Looks::Foreign("an ISO 9660 medium")
    } else {
        Looks::Unknown
    }
}

/// Text has no control characters in its beginning but white space; images always have.
fn text(head: &[u8]) -> Option<Looks> {
    let head = &head[..head.len().min(512)];
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    if head.iter().any(|&b| (b < 0x20 && !b"\t\n\r\x0c\x1b".contains(&b)) || b == 0x7f) {
        return None;
    }
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The end may have cut a character in two; anything else is no UTF-8. Pages in an old
        // encoding are still recognised by their ASCII start.
        Err(e) => std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or_default(),
    };
    let start = text.trim_start();
    if start.is_empty() {
        return None;
    }
    let lower = start.to_ascii_lowercase();
    if ["<!doctype", "<html", "<head", "<body", "<?xml", "<!--"]
        .iter()
        .any(|p| lower.starts_with(p))
    {
        return Some(Looks::Page);
    }
    if text.len() + 4 < head.len() {
        return None;
    }
    let first: String = start.lines().next().unwrap_or_default().chars().take(60).collect();
    Some(Looks::Text(first.escape_default().to_string()))
}

/// What [`inspect`] found.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub path: PathBuf,
    /// Length of the file.
    pub bytes: u64,
    pub looks: Looks,
    /// What QEMU must be told it is; `None` when it is no image for us.
    pub format: Option<Format>,
    /// Bytes of the disk that a guest sees; `None` when it is no image.
    pub virtual_size: Option<u64>,
    pub features: Vec<String>,
    /// Why it may not be used. Empty: it may.
    pub problems: Vec<String>,
    /// Why OpenStack refuses it, although it is harmless here.
    pub cloud_refuses: Vec<String>,
}

impl Inspection {
    pub fn is_fine(&self) -> bool {
        self.problems.is_empty() && self.format.is_some()
    }

    /// Refuses what is unsafe, is no image, or is not of the format that was promised.
    pub fn require(self, promised: Option<Format>) -> Result<Inspection> {
        let refuse = |what: String| Error::image(what).at(&self.path, None);
        let Some(found) = self.format else {
            return Err(match &self.looks {
                Looks::Page | Looks::Text(_) => {
                    refuse(format!("is not an image but {}", self.looks)).hint(
                        "a server that answers with a page, or a redirect that was not followed, \
                         leaves such a file: fetch it again",
                    )
                }
                looks => refuse(format!("is not an image but {looks}")),
            });
        };
        if let Some(promised) = promised
            && promised != found
        {
            return Err(refuse(format!("should be a {promised} image, but is {}", self.looks)));
        }
        if !self.problems.is_empty() {
            let e = refuse("is an image that may not be used".into())
                .evidence(self.problems.iter().map(String::as_str))
                .because(self.problems[0].clone())
                .hint("do not open it with other tools: get it from its publisher again");
            return Err(e);
        }
        Ok(self)
    }
}

/// Reads what the file at `path` is. An error only where it cannot be read: what is wrong with its
/// content is in the [`Inspection`].
pub fn inspect(path: &Path) -> Result<Inspection> {
    let cannot = |e: Error| e.at(path, None);
    let mut file =
        File::open(path).doing(Kind::Image, || "could not be opened".into()).map_err(cannot)?;
    let meta = file.metadata().doing(Kind::Image, || "could not be read".into()).map_err(cannot)?;
    if !meta.is_file() {
        return Err(Error::image("is not a regular file").at(path, None));
    }
    let bytes = meta.len();
    let mut head = Vec::new();
    read_up_to(&mut file, &mut head, SNIFF)
        .doing(Kind::Image, || "could not be read".into())
        .map_err(cannot)?;
    let looks = sniff(&head);
    let mut found = Inspection {
        path: path.to_owned(),
        bytes,
        format: None,
        virtual_size: None,
        features: Vec::new(),
        problems: Vec::new(),
        cloud_refuses: Vec::new(),
        looks,
    };
    match found.looks {
        Looks::Qcow2 => {
            found.format = Some(Format::Qcow2);
            read_up_to(&mut file, &mut head, qcow2::HEAD)
                .doing(Kind::Image, || "could not be read".into())
                .map_err(cannot)?;
            match qcow2::parse(&head) {
                Ok(header) => {
                    found.virtual_size = Some(header.virtual_size);
                    found.features = header.features();
                    found.problems = header.dangers(bytes);
                    found.cloud_refuses = header.cloud_refuses();
                    if found.problems.is_empty() {
                        let cut = qcow2::cut_off(&mut file, &header, bytes)
                            .doing(Kind::Image, || "could not be read".into())
                            .map_err(cannot)?;
                        found.problems.extend(cut);
                    }
                }
                Err(why) => found.problems.push(why.to_string()),
            }
        }
        Looks::Disk => {
            found.format = Some(Format::Raw);
            found.virtual_size = Some(bytes);
            let table = partitions(&head, bytes);
            found.features = table.features;
            found.problems = table.problems;
        }
        _ => {}
    }
    Ok(found)
}

/// Fills `head` up to `limit` bytes, or the end of the file.
fn read_up_to(file: &mut File, head: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    let missing = limit.saturating_sub(head.len()) as u64;
    file.take(missing).read_to_end(head).map(drop)
}

struct Table {
    features: Vec<String>,
    problems: Vec<String>,
}

/// Reads the partition table of a disk that has a boot sector.
fn partitions(head: &[u8], bytes: u64) -> Table {
    let mut table = Table { features: Vec::new(), problems: Vec::new() };
    if !bytes.is_multiple_of(SECTOR) {
        table
            .problems
            .push(format!("its length of {bytes} bytes is no multiple of {SECTOR}: it is cut off"));
    }
    let sectors = bytes / SECTOR;
    let u32_at = |at: usize| {
        head.get(at..).and_then(|r| r.first_chunk()).map(|b| u64::from(u32::from_le_bytes(*b)))
    };
    for i in 0..4 {
        let at = 446 + 16 * i;
        let (Some(kind), Some(start), Some(len)) =
            (head.get(at + 4).copied(), u32_at(at + 8), u32_at(at + 12))
        else {
            table.problems.push("its first sector is cut off".into());
            return table;
        };
        match kind {
            0 => {}
            // A protective entry may cover more than the disk has; the GPT is what counts.
            0xee => {
                if head.get(512..520) == Some(b"EFI PART") {
                    table.features.push("GPT".into());
                } else {
                    table.problems.push("its MBR announces a GPT that is not there".into());
                }
            }
            _ if start + len > sectors => table.problems.push(format!(
                "partition {} ends at sector {}, the disk at {sectors}: it is cut off",
                i + 1,
                start + len
            )),
            _ => table.features.push(format!("MBR partition {} of type 0x{kind:02x}", i + 1)),
        }
    }
    if table.features.is_empty() && table.problems.is_empty() {
        table.features.push("boot sector without partitions".into());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images").join(name)
    }

    fn inspect_bytes(bytes: &[u8]) -> Inspection {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        inspect(&path).unwrap()
    }

    /// A raw disk of `sectors` with one partition entry.
    fn disk(sectors: u64, kind: u8, start: u32, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; (sectors * SECTOR) as usize];
        bytes[0] = 0xeb;
        bytes[450] = kind;
        bytes[454..458].copy_from_slice(&start.to_le_bytes());
        bytes[458..462].copy_from_slice(&len.to_le_bytes());
        bytes[510..512].copy_from_slice(b"\x55\xaa");
        bytes
    }

    #[test]
    fn every_kind_of_wrong_file_is_called_by_its_name() {
        for (bytes, looks) in [
            (&b""[..], Looks::Empty),
            (b"\n <!DOCTYPE html>\n<html>", Looks::Page),
            (b"<HTML><body>Moved</body>", Looks::Page),
            (b"\xef\xbb\xbf<html>", Looks::Page),
            (b"<?xml version=\"1.0\"?><Error>NoSuchKey</Error>", Looks::Page),
            (b"<html><title>Nicht gef\xfcnden</title>", Looks::Page),
            (b"404 not found\n", Looks::Text("404 not found".into())),
            ("그런 파일이 없습니다".as_bytes(), sniff("그런 파일이 없습니다".as_bytes())),
            (b"\x1f\x8b\x08\0rest", Looks::Compressed("gzip")),
            (b"\xfd7zXZ\0rest", Looks::Compressed("xz")),
            (b"\x28\xb5\x2f\xfdrest", Looks::Compressed("zstd")),
            (b"BZh9rest", Looks::Compressed("bzip2")),
            (b"KDMV\x01\0", Looks::Foreign("a VMDK image")),
            (
                b"# Disk DescriptorFile\nparentFileNameHint=\"/etc/shadow\"",
                Looks::Foreign("a VMDK image"),
            ),
            (b"vhdxfile\0", Looks::Foreign("a VHDX image")),
            (b"\x7fELF\x02", Looks::Foreign("an ELF program")),
            (b"\0\x01\x02\x03", Looks::Unknown),
        ] {
            assert_eq!(sniff(bytes), looks, "{:?}", bytes.escape_ascii().to_string());
            let e = inspect_bytes(bytes);
            assert!(!e.is_fine());
        }
        assert!(matches!(sniff("그런 파일이 없습니다".as_bytes()), Looks::Text(_)));
    }

    #[test]
    fn text_cut_in_the_middle_of_a_character_is_still_text() {
        let text = "가".repeat(200);
        assert!(matches!(sniff(&text.as_bytes()[..512]), Looks::Text(_)));
    }

    #[test]
    fn an_iso_and_a_tar_are_recognised_far_into_the_file() {
        let mut iso = vec![0; SNIFF];
        iso[32769..32774].copy_from_slice(b"CD001");
        assert_eq!(sniff(&iso), Looks::Foreign("an ISO 9660 medium"));
        let mut tar = vec![0; 1024];
        tar[0] = b'f';
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(sniff(&tar), Looks::Foreign("a tar archive"));
    }

    #[test]
    fn a_page_is_refused_with_the_redirect_as_its_likely_cause() {
        let e = inspect_bytes(b"<html>302 Found</html>").require(Some(Format::Qcow2)).unwrap_err();
        assert!(e.message().contains("web page"), "{e}");
        assert!(e.hint_text().unwrap().contains("redirect"));
    }

    #[test]
    fn a_compressed_image_names_the_tool_that_undoes_it() {
        let e = inspect_bytes(b"\xfd7zXZ\0rest").require(None).unwrap_err();
        assert!(e.message().contains("xz -d"), "{e}");
    }

    #[test]
    fn a_good_qcow2_passes_and_tells_its_disk() {
        let found =
            inspect(&fixture("qcow2/plain.qcow2")).unwrap().require(Some(Format::Qcow2)).unwrap();
        assert_eq!(found.virtual_size, Some(1 << 20));
        assert!(found.features.contains(&"version 3".into()), "{:?}", found.features);
    }

    #[test]
    fn a_dangerous_qcow2_is_refused_with_the_reason() {
        let e = inspect(&fixture("qcow2/data-file.qcow2")).unwrap().require(None).unwrap_err();
        assert_eq!(e.kind(), Kind::Image);
        assert!(e.evidence_lines().iter().any(|l| l.contains("CVE-2024-32498")), "{e:?}");
    }

    #[test]
    fn a_qcow2_cut_off_in_its_header_is_refused() {
        let whole = std::fs::read(fixture("qcow2/plain.qcow2")).unwrap();
        let e = inspect_bytes(&whole[..60]).require(None).unwrap_err();
        assert!(e.to_string().contains("cut off"), "{e}");
    }

    #[test]
    fn a_format_that_was_not_promised_is_refused() {
        let e =
            inspect(&fixture("qcow2/plain.qcow2")).unwrap().require(Some(Format::Raw)).unwrap_err();
        assert!(e.message().contains("should be a raw image"), "{e}");
        let e = inspect_bytes(&disk(64, 0x83, 1, 8)).require(Some(Format::Qcow2)).unwrap_err();
        assert!(e.message().contains("should be a qcow2 image"), "{e}");
    }

    #[test]
    fn a_raw_disk_passes_and_tells_its_partitions() {
        let found = inspect_bytes(&disk(64, 0x83, 1, 63)).require(Some(Format::Raw)).unwrap();
        assert_eq!(found.virtual_size, Some(64 * 512));
        assert_eq!(found.features, ["MBR partition 1 of type 0x83"]);
        let mut gpt = disk(64, 0xee, 1, u32::MAX);
        gpt[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(inspect_bytes(&gpt).require(None).unwrap().features, ["GPT"]);
    }

    #[test]
    fn a_raw_disk_that_is_cut_off_is_refused() {
        for (bytes, says) in [
            (disk(64, 0x83, 1, 64), "ends at sector 65"),
            (disk(64, 0x83, u32::MAX, u32::MAX), "cut off"),
            (disk(64, 0x83, 1, 8)[..1000].to_vec(), "no multiple of 512"),
            (disk(64, 0xee, 1, 8), "GPT that is not there"),
        ] {
            let found = inspect_bytes(&bytes);
            assert!(found.problems.iter().any(|p| p.contains(says)), "{:?}", found.problems);
            assert!(found.require(None).is_err());
        }
    }

    #[test]
    fn a_folder_and_a_missing_file_are_errors_that_name_them() {
        assert!(inspect(Path::new("/")).unwrap_err().to_string().starts_with("/: "));
        assert!(
            inspect(Path::new("/nonexistent")).unwrap_err().to_string().contains("/nonexistent")
        );
    }
}

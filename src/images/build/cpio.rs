//! A cpio archive in the `newc` format, as the Linux kernel unpacks its initramfs from.
//!
//! Everything belongs to root and has the time 0, so that equal inputs give equal bytes.

/// An archive being written. Parents must be added before what they hold.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040000;
const FILE: u32 = 0o100000;
const LINK: u32 = 0o120000;
const CHARACTER: u32 = 0o020000;

impl Archive {
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.entry(path, DIRECTORY | mode, (0, 0), &[]);
    }
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, (0, 0), content);
    }
    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes());
    }
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(path, CHARACTER | mode, (major, minor), &[]);
    }

    /// The whole archive, with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("no file of an initramfs has 4 GiB");
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let name = path.trim_start_matches('/');
        let header = [
            self.entries,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            size,
            0,
            0, // the device that it lies on
            device.0,
            device.1,
            u32::try_from(name.len() + 1).expect("paths are short"),
            0, // no checksum in newc
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_aligned_entries_with_their_modes_and_ends_with_its_trailer() {
        let mut archive = Archive::default();
        archive.directory("/bin", 0o755);
        archive.file("/bin/x", 0o4755, b"hello");
        archive.link("/init", "/bin/x");
        archive.character_device("/dev/null", 0o666, 1, 3);
        let bytes = archive.finish();

        let field = |at: usize, n: usize| {
            let text = std::str::from_utf8(&bytes[at + 6 + n * 8..at + 14 + n * 8]).unwrap();
            usize::from_str_radix(text, 16).unwrap()
        };
        let mut at = 0;
        let mut seen = Vec::new();
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name) = (field(at, 1), field(at, 6), field(at, 11));
            let text = std::str::from_utf8(&bytes[at + 110..at + 110 + name - 1]).unwrap();
            let data = (at + 110 + name).next_multiple_of(4);
            seen.push((
                text.to_owned(),
                mode,
                bytes[data..data + size].to_vec(),
                field(at, 9),
                field(at, 10),
            ));
            at = (data + size).next_multiple_of(4);
            if text == "TRAILER!!!" {
                break;
            }
        }
        assert_eq!(at, bytes.len());
        assert_eq!(seen[0], ("bin".into(), 0o040755, vec![], 0, 0));
        assert_eq!(seen[1], ("bin/x".into(), 0o104755, b"hello".to_vec(), 0, 0));
        assert_eq!(seen[2], ("init".into(), 0o120777, b"/bin/x".to_vec(), 0, 0));
        assert_eq!(seen[3], ("dev/null".into(), 0o020666, vec![], 1, 3));
    }
}

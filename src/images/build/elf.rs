//! 64-bit little-endian ELF files: which shared libraries one needs (`DT_NEEDED`), and a section
//! taken out of one.

/// Of 64-bit little-endian files.
const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// What a program or library needs to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub libraries: Vec<String>,
    /// The loader's path. Libraries and static programs have none.
    pub interpreter: Option<String>,
}

/// None if this is no such ELF file, or a broken one.
pub fn needs(file: &[u8]) -> Option<Needs> {
    if !file.starts_with(MAGIC) {
        return None;
    }
    let headers = usize::try_from(u64_at(file, 32)?).ok()?;
    let (size, count) = (u16_at(file, 54)? as usize, u16_at(file, 56)? as usize);
    let segments = (0..count)
        .map(|i| Segment::read(file, headers.checked_add(i * size)?))
        .collect::<Option<Vec<_>>>()?;

    let mut needs = Needs::default();
    if let Some(interp) = segments.iter().find(|s| s.kind == PT_INTERP) {
        needs.interpreter = Some(text_at(file, interp.offset)?);
    }
    let Some(dynamic) = segments.iter().find(|s| s.kind == PT_DYNAMIC) else {
        return Some(needs);
    };
    let entries: Vec<(u64, u64)> = (0..dynamic.size / 16)
        .map(|i| {
            let at = dynamic.offset.checked_add(i * 16)?;
            Some((u64_at(file, at)?, u64_at(file, at.checked_add(8)?)?))
        })
        .collect::<Option<_>>()?;
    let strings = entries.iter().find(|(tag, _)| *tag == DT_STRTAB)?.1;
    // The table is named by its address in memory: the segment that it lies in says where in the
    // file that is.
    let strings = segments.iter().find_map(|s| {
        let inside = usize::try_from(strings.checked_sub(s.address)?).ok()?;
        (s.kind == PT_LOAD && inside < s.size).then(|| s.offset.checked_add(inside))?
    })?;
    for (_, name) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
        let at = strings.checked_add(usize::try_from(*name).ok()?)?;
        needs.libraries.push(text_at(file, at)?);
    }
    Some(needs)
}

/// Sets the size of the section of that name to nothing, which is how a reader sees one without
/// content. None, and nothing changed, if there is none or this is no such ELF file.
pub fn empty_section(file: &mut [u8], name: &str) -> Option<()> {
    if !file.starts_with(MAGIC) {
        return None;
    }
    let headers = usize::try_from(u64_at(file, 40)?).ok()?;
    let (size, count) = (u16_at(file, 58)? as usize, u16_at(file, 60)? as usize);
    let header = |i: usize| headers.checked_add(i * size);
    let names = header(u16_at(file, 62)? as usize)?;
    let names = usize::try_from(u64_at(file, names.checked_add(24)?)?).ok()?;
    let is_it = |i: &usize| {
        let at = header(*i).and_then(|at| u32_at(file, at)).map(|n| n as usize);
        at.and_then(|n| text_at(file, names.checked_add(n)?)).is_some_and(|n| n == name)
    };
    let at = header((0..count).find(is_it)?)?.checked_add(32)?;
    file.get_mut(at..at.checked_add(8)?)?.fill(0);
    Some(())
}

struct Segment {
    kind: u32,
    offset: usize,
    address: u64,
    size: usize,
}

impl Segment {
    fn read(file: &[u8], at: usize) -> Option<Segment> {
        Some(Segment {
            kind: u32_at(file, at)?,
            offset: usize::try_from(u64_at(file, at.checked_add(8)?)?).ok()?,
            address: u64_at(file, at.checked_add(16)?)?,
            size: usize::try_from(u64_at(file, at.checked_add(32)?)?).ok()?,
        })
    }
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(file.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(file.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(file.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn text_at(file: &[u8], at: usize) -> Option<String> {
    let rest = file.get(at..)?;
    let end = rest.iter().position(|b| *b == 0)?;
    Some(std::str::from_utf8(&rest[..end]).ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_names_its_loader_and_libraries() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = needs(&program).unwrap();
        assert!(needs.libraries.iter().any(|l| l.starts_with("libc.so")), "{needs:?}");
        assert!(needs.interpreter.unwrap().contains("ld-linux"));
    }

    #[test]
    fn what_is_no_elf_file_or_is_cut_short_needs_nothing_known() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(needs(b"#!/bin/sh\n"), None);
        for cut in [0, 5, 60, 100, 500] {
            assert_eq!(needs(&program[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_section_is_emptied_and_nothing_else_changes() {
        let before = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut after = before.clone();
        empty_section(&mut after, ".comment").unwrap();
        let changed: Vec<usize> = (0..before.len()).filter(|i| before[*i] != after[*i]).collect();
        assert!((1..=8).contains(&changed.len()), "{changed:?}");
        let size = changed[0] & !7;
        assert!(changed.iter().all(|i| (size..size + 8).contains(i)), "{changed:?}");
        assert_eq!(u64_at(&after, size), Some(0));

        assert_eq!(empty_section(&mut after, ".no-such-section"), None);
        assert_eq!(empty_section(&mut b"#!/bin/sh\n".to_vec(), ".comment"), None);
        for cut in [5, 60, 63, 100] {
            assert_eq!(empty_section(&mut before[..cut].to_vec(), ".comment"), None, "{cut}");
        }
    }
}

//! Which shared libraries an ELF file needs: `DT_NEEDED`, of 64-bit little-endian files.

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
    if file.get(..6)? != b"\x7fELF\x02\x01" {
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

struct Segment {
    kind: u32,
    offset: usize,
    address: u64,
    size: usize,
}

impl Segment {
    fn read(file: &[u8], at: usize) -> Option<Segment> {
        Some(Segment {
            kind: u32::from_le_bytes(file.get(at..at.checked_add(4)?)?.try_into().ok()?),
            offset: usize::try_from(u64_at(file, at.checked_add(8)?)?).ok()?,
            address: u64_at(file, at.checked_add(16)?)?,
            size: usize::try_from(u64_at(file, at.checked_add(32)?)?).ok()?,
        })
    }
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(file.get(at..at.checked_add(2)?)?.try_into().ok()?))
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
}

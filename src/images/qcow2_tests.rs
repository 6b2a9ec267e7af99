use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/fixtures/images/qcow2/{name}.qcow2", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A whole small image that QEMU made, to be damaged.
fn good() -> Vec<u8> {
    fixture("plain")
}

fn dangers(image: &[u8]) -> Vec<String> {
    parse(image).unwrap().dangers(image.len() as u64)
}

fn with_u32(at: usize, value: u32) -> Vec<u8> {
    let mut image = good();
    image[at..at + 4].copy_from_slice(&value.to_be_bytes());
    image
}

fn with_u64(at: usize, value: u64) -> Vec<u8> {
    let mut image = good();
    image[at..at + 8].copy_from_slice(&value.to_be_bytes());
    image
}

/// The image has exactly one danger, and it says `what`.
#[track_caller]
fn only(image: &[u8], what: &str) {
    let found = dangers(image);
    assert!(found.len() == 1 && found[0].contains(what), "expected only `{what}`: {found:?}");
}

#[test]
fn images_that_qemu_made_for_themselves_are_harmless() {
    for (name, version) in
        [("plain", 3), ("v2", 2), ("zstd", 3), ("extended-l2", 3), ("snapshot", 3)]
    {
        let image = fixture(name);
        let header = parse(&image).unwrap();
        assert_eq!(header.version, version, "{name}");
        assert_eq!(header.virtual_size, 1 << 20, "{name}");
        assert_eq!(header.dangers(image.len() as u64), Vec::<String>::new(), "{name}");
    }
    assert_eq!(parse(&fixture("zstd")).unwrap().compression, 1);
    assert_eq!(parse(&fixture("snapshot")).unwrap().snapshots, 1);
}

#[test]
fn images_that_qemu_made_to_lean_on_others_are_refused() {
    let found = dangers(&fixture("backing-file"));
    assert!(found.iter().any(|d| d.contains("backing file")), "{found:?}");
    assert!(found.iter().any(|d| d.contains("backing-format")), "{found:?}");
    only(&fixture("data-file"), "CVE-2024-32498");
    only(&fixture("encrypted"), "encrypted");
}

#[test]
fn each_field_that_may_not_be_is_found() {
    only(&with_u64(8, 512), "backing file");
    only(&with_u32(16, 5), "backing file");
    only(&with_u32(32, 1), "encrypted");
    only(&with_u64(72, 1 << 1), "corrupt");
    only(&with_u64(72, 1 << 2), "external data file");
    only(&with_u64(88, 1 << 1), "external data file");
    only(&with_u64(72, 1 << 5), "0x20");
    only(&with_u64(72, 1 << 63), "0x8000000000000000");
    only(&with_u64(72, 1 << 3), "contradicts");
    only(&with_u64(24, 0), "no bytes");
    only(&with_u32(36, 0), "L1 table has 0 entries");
    only(&with_u64(40, 1 << 40), "L1 table lies outside");
    only(&with_u64(40, u64::MAX - 511), "L1 table lies outside");
    only(&with_u64(40, 0), "L1 table lies outside");
    only(&with_u64(40, good().len() as u64 - 1), "L1 table lies outside");
    only(&with_u64(48, u64::MAX - 511), "refcount table lies outside");
    only(&with_u32(56, 0), "refcount table of 0");
    only(&with_u32(96, 7), "2^7");
    only(&with_u32(60, 1), "snapshot table");
    // Wrong in more than one way.
    let extended = dangers(&with_u64(72, 1 << 4));
    assert!(extended.iter().any(|d| d.contains("extended L2")), "{extended:?}");
    let huge = dangers(&with_u64(24, u64::MAX));
    assert!(huge.iter().any(|d| d.contains("virtual size")), "{huge:?}");
    let many = dangers(&with_u32(36, u32::MAX));
    assert!(many.iter().any(|d| d.contains("outside")), "{many:?}");
}

#[test]
fn a_dirty_image_may_enter_and_says_so() {
    let image = with_u64(72, 1);
    assert_eq!(dangers(&image), Vec::<String>::new());
    assert!(parse(&image).unwrap().features().iter().any(|f| f.contains("dirty")));
}

#[test]
fn a_data_file_name_is_found_behind_another_extension() {
    let mut image = good();
    let at = parse(&image).unwrap().header_length as usize;
    // A feature name table of 5 bytes, padded to 8; then the crafted one.
    image[at..at + 8].copy_from_slice(&[0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 5]);
    assert_eq!(parse(&image).unwrap().extensions, [0x6803_f857]);
    assert_eq!(dangers(&image), Vec::<String>::new());
    image[at + 16..at + 24].copy_from_slice(&[0x44, 0x41, 0x54, 0x41, 0, 0, 0, 3]);
    only(&image, "external data file");
}

#[test]
fn an_extension_that_leaves_its_cluster_is_refused() {
    let mut image = good();
    let at = parse(&image).unwrap().header_length as usize;
    image[at..at + 4].copy_from_slice(&[0x68, 0x03, 0xf8, 0x57]);
    for length in [u32::MAX, 1 << 20, 600] {
        image[at + 4..at + 8].copy_from_slice(&length.to_be_bytes());
        assert!(matches!(parse(&image), Err(Unreadable::Extension { .. })), "{length}");
    }
}

#[test]
fn impossible_headers_are_unreadable() {
    assert_eq!(parse(b""), Err(Unreadable::NotQcow2));
    assert_eq!(parse(b"<!DOCTYPE html>"), Err(Unreadable::NotQcow2));
    assert_eq!(parse(&with_u32(4, 1)), Err(Unreadable::Version(1)));
    assert_eq!(parse(&with_u32(4, 4)), Err(Unreadable::Version(4)));
    assert_eq!(parse(&with_u32(20, 8)), Err(Unreadable::ClusterBits(8)));
    assert_eq!(parse(&with_u32(20, 22)), Err(Unreadable::ClusterBits(22)));
    assert_eq!(parse(&with_u32(20, u32::MAX)), Err(Unreadable::ClusterBits(u32::MAX)));
    for length in [0, 72, 100, 105, u32::MAX] {
        assert_eq!(parse(&with_u32(100, length)), Err(Unreadable::HeaderLength(length)));
    }
}

#[test]
fn every_truncation_is_an_error_and_none_a_panic() {
    let image = good();
    let tables_end = {
        let h = parse(&image).unwrap();
        let l1 = h.l1_table_offset + u64::from(h.l1_size) * 8;
        l1.max(h.refcount_table_offset + h.cluster_size())
    };
    for len in 0..image.len().min(tables_end as usize) {
        let cut = &image[..len];
        let refused = parse(cut).map_or(true, |h| !h.dangers(len as u64).is_empty());
        assert!(refused, "cut to {len} bytes");
    }
}

/// xorshift: the same "random" damage on every run.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn random_damage_never_panics_and_what_passes_leans_on_nothing() {
    let image = good();
    let mut random = Random(0x5eed_1234_5678_9abc);
    let (mut passed, mut refused) = (0u32, 0u32);
    for _ in 0..50_000 {
        let mut crafted = image.clone();
        for _ in 0..1 + random.next() % 4 {
            let at = 4 + (random.next() % 500) as usize;
            // Small values and set bits alike.
            crafted[at] = if random.next().is_multiple_of(2) {
                random.next() as u8
            } else {
                1 << (random.next() % 8)
            };
        }
        let Ok(h) = parse(&crafted) else {
            refused += 1;
            continue;
        };
        if h.dangers(crafted.len() as u64).is_empty() {
            passed += 1;
            assert_eq!((h.backing_file_offset, h.backing_file_size, h.crypt_method), (0, 0, 0));
            assert_eq!(h.incompatible & !0b11001, 0);
            assert!(!h.extensions.contains(&0x4441_5441) && !h.extensions.contains(&0xe279_2aca));
            assert!(h.virtual_size <= MAX_VIRTUAL_SIZE);
        } else {
            refused += 1;
        }
    }
    // Damage in unused bytes passes, damage in fields does not: both must have been tried.
    assert!(passed > 100 && refused > 100, "{passed} passed, {refused} refused");
}

/// An image with one cluster of data, at its end.
fn with_data() -> (Vec<u8>, u64) {
    let mut image = fixture("plain");
    let header = parse(&image).unwrap();
    let cluster = header.cluster_size() as usize;
    image.resize(image.len().next_multiple_of(cluster), 0);
    let (l2, data) = (image.len(), image.len() + cluster);
    image.resize(l2 + 2 * cluster, 7);
    image[l2..data].fill(0);
    let copied = 1 << 63;
    let l1 = header.l1_table_offset as usize;
    image[l1..l1 + 8].copy_from_slice(&(l2 as u64 | copied).to_be_bytes());
    image[l2..l2 + 8].copy_from_slice(&(data as u64 | copied).to_be_bytes());
    (image, data as u64)
}

fn cut(image: &[u8]) -> Option<String> {
    let header = parse(image).unwrap();
    cut_off(&mut io::Cursor::new(image), &header, image.len() as u64).unwrap()
}

#[test]
fn a_download_that_was_cut_off_is_found() {
    let (image, data) = with_data();
    let cluster = parse(&image).unwrap().cluster_size();
    assert_eq!(cut(&image), None);
    // A last cluster may be short.
    assert_eq!(cut(&image[..data as usize + 100]), None);
    let found = cut(&image[..data as usize]).unwrap();
    assert!(found.contains(&format!("cluster at byte {data}")), "{found}");
    let found = cut(&image[..(data - cluster) as usize + 100]).unwrap();
    assert!(found.contains("L2 table"), "{found}");
}

#[test]
fn compressed_clusters_are_looked_at_too() {
    let (mut image, data) = with_data();
    let cluster = parse(&image).unwrap().cluster_size();
    let l2 = (data - cluster) as usize;
    // Above the offset stands how many more sectors it takes: one bit with clusters of 512 bytes.
    let entry = (1u64 << 62) | (1 << 61) | data;
    image[l2..l2 + 8].copy_from_slice(&entry.to_be_bytes());
    assert_eq!(cluster, 512);
    assert_eq!(cut(&image), None);
    assert!(cut(&image[..data as usize]).is_some());
}

#[test]
fn images_that_qemu_made_are_whole() {
    for name in ["plain", "v2", "zstd", "extended-l2", "snapshot"] {
        assert_eq!(cut(&fixture(name)), None, "{name}");
    }
}

#[test]
fn extended_l2_entries_are_known_to_be_refused_by_openstack() {
    let refuses = |name: &str| parse(&fixture(name)).unwrap().cloud_refuses();
    assert!(refuses("extended-l2")[0].contains("extended L2"));
    assert_eq!(refuses("zstd"), [] as [String; 0]);
}

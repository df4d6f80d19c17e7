//! Space that discards free: what goes back to the file system, and what must not.

use std::os::unix::fs::MetadataExt;

use super::*;

/// Size of the images' disks, in clusters.
const CLUSTERS: u64 = 32;
/// What a file system may take to remember the holes, in bytes.
const HOLES_BYTES_MAX: u64 = 16 << 10;

/// An image whose disk is full: each cluster has its number, from 1 on.
fn full(folder: &Folder) -> (Image, Vec<u8>) {
    folder.create("a.qcow2", CLUSTERS * CLUSTER, None);
    let image = folder.open("a.qcow2", Access::ReadWrite).unwrap();
    let expected: Vec<u8> = (0..CLUSTERS * CLUSTER).map(|at| (at / CLUSTER) as u8 + 1).collect();
    image.write(&expected, 0).unwrap();
    image.flush().unwrap();
    (image, expected)
}

fn occupied_bytes(folder: &Folder) -> u64 {
    fs::metadata(folder.path("a.qcow2")).unwrap().blocks() * 512
}

/// Where the file has a cluster.
fn place(image: &Image, cluster: u64) -> u64 {
    let (_, at) = image.place(cluster * CLUSTER, CLUSTER, Direction::In).unwrap().unwrap();
    at
}

/// Returns whether the file has nothing but zeros in the cluster at `at`.
fn is_hole(folder: &Folder, at: u64) -> bool {
    let mut bytes = vec![1; CLUSTER as usize];
    folder.file("a.qcow2").read_exact_at(&mut bytes, at).unwrap();
    bytes.iter().all(|byte| *byte == 0)
}

fn discard(image: &Image, cluster: u64, count: u64) {
    image.clear(cluster * CLUSTER, count * CLUSTER, Clearing::PunchHole).unwrap();
}

#[test]
fn the_space_of_discarded_clusters_goes_back_once_the_tables_are_durable() {
    let folder = Folder::new();
    let (image, mut expected) = full(&folder);
    let before = occupied_bytes(&folder);
    let places: Vec<u64> = (4..13).map(|cluster| place(&image, cluster)).collect();
    // Of the last cluster only half.
    image.clear(4 * CLUSTER, 8 * CLUSTER + CLUSTER / 2, Clearing::PunchHole).unwrap();
    expected[4 * CLUSTER as usize..][..8 * CLUSTER as usize + CLUSTER as usize / 2].fill(0);
    assert!(places.iter().all(|at| !is_hole(&folder, *at)), "the tables may refer to them yet");
    image.flush().unwrap();
    assert!(places[..8].iter().all(|at| is_hole(&folder, *at)));
    let after = occupied_bytes(&folder);
    assert!(after + 8 * CLUSTER <= before + HOLES_BYTES_MAX, "{after} bytes of {before}");
    assert!(content(&image) == expected);
    image.open_again(Access::ReadWrite).unwrap();
    assert!(content(&image) == expected);
    discard(&image, 20, 4);
    drop(image);
    let end = occupied_bytes(&folder);
    assert!(end + 4 * CLUSTER <= after + HOLES_BYTES_MAX, "{end} bytes of {after}");
}

#[test]
fn a_cluster_that_a_write_has_got_since_is_kept() {
    let folder = Folder::new();
    let (image, mut expected) = full(&folder);
    let (first, second) = (place(&image, 3), place(&image, 4));
    discard(&image, 3, 2);
    image.write(&[0xaa; CLUSTER as usize], 4 * CLUSTER).unwrap();
    assert_eq!(place(&image, 4), first, "the place is used again");
    image.flush().unwrap();
    expected[3 * CLUSTER as usize..][..CLUSTER as usize].fill(0);
    expected[4 * CLUSTER as usize..][..CLUSTER as usize].fill(0xaa);
    assert!(content(&image) == expected && is_hole(&folder, second));
    // What was given back is used as any other place.
    image.write(&[0xbb; CLUSTER as usize], 3 * CLUSTER).unwrap();
    assert_eq!(place(&image, 3), second);
    image.flush().unwrap();
    expected[3 * CLUSTER as usize..][..CLUSTER as usize].fill(0xbb);
    assert!(content(&image) == expected);
}

#[test]
fn a_cluster_that_something_else_uses_is_kept() {
    for is_marked_as_shared in [true, false] {
        let folder = Folder::new();
        let (image, _) = full(&folder);
        let (shared, own) = (place(&image, 3), place(&image, 4));
        drop(image);
        // As with a snapshot, which only other programs make.
        let path = folder.path("a.qcow2");
        let mut bytes = fs::read(&path).unwrap();
        let long = |bytes: &[u8], at: usize| {
            u64::from_be_bytes(std::array::from_fn(|n| bytes[at + n])) & 0x00ff_ffff_ffff_fe00
        };
        let block = long(&bytes, long(&bytes, 48) as usize) as usize;
        bytes[block + (shared / CLUSTER) as usize * 2 + 1] = 2;
        if is_marked_as_shared {
            let table = long(&bytes, long(&bytes, 40) as usize) as usize;
            bytes[table + 3 * 8] &= 0x7f;
        }
        fs::write(&path, bytes).unwrap();
        let image = folder.open("a.qcow2", Access::ReadWrite).unwrap();
        assert_eq!((place(&image, 3), place(&image, 4)), (shared, own));
        discard(&image, 3, 2);
        image.flush().unwrap();
        assert!(!is_hole(&folder, shared) && is_hole(&folder, own), "{is_marked_as_shared}");
    }
}

#[test]
fn many_pieces_are_given_back_a_part_at_a_time() {
    const SMALL: u64 = 4096;
    const PIECES: u64 = 600;
    let folder = Folder::new();
    folder.create_with(SMALL, "a.qcow2", PIECES * SMALL, None);
    let image = folder.open("a.qcow2", Access::ReadWrite).unwrap();
    for piece in (0..PIECES).rev() {
        image.write(&[1; SMALL as usize], piece * SMALL).unwrap();
    }
    image.flush().unwrap();
    let before = occupied_bytes(&folder);
    image.clear(0, PIECES * SMALL, Clearing::PunchHole).unwrap();
    let midway = occupied_bytes(&folder);
    assert!(midway + 512 * SMALL <= before + HOLES_BYTES_MAX, "{midway} bytes of {before}");
    image.flush().unwrap();
    let after = occupied_bytes(&folder);
    assert!(after + PIECES * SMALL <= before + HOLES_BYTES_MAX, "{after} bytes of {before}");
    assert!(content(&image).iter().all(|byte| *byte == 0));
}

#[test]
fn counts_of_every_width_are_read() {
    for width in [1, 2, 4, 8, 16, 32, 64] {
        let folder = Folder::new();
        let storage = ImageFile::unmarked(&folder.path("a.qcow2"), &folder.file("a.qcow2"));
        let builder = Qcow2::<ImageFile>::create_builder(storage).size(CLUSTERS * CLUSTER);
        builder.refcount_width(width).create().unwrap();
        let image = folder.open("a.qcow2", Access::ReadWrite).unwrap();
        image.write(&vec![1; (CLUSTERS * CLUSTER) as usize], 0).unwrap();
        let places: Vec<u64> = (0..CLUSTERS).map(|cluster| place(&image, cluster)).collect();
        let is_discarded = |cluster: u64| cluster % 3 == 1;
        let discarded = (0..CLUSTERS).filter(|cluster| is_discarded(*cluster));
        discarded.for_each(|cluster| discard(&image, cluster, 1));
        // The range covers clusters that are in use as well.
        let all = places[0]..places[0] + CLUSTERS * CLUSTER;
        image.freed.lock().unwrap().note(all);
        image.flush().unwrap();
        for (cluster, at) in (0..CLUSTERS).zip(places) {
            assert_eq!(is_hole(&folder, at), is_discarded(cluster), "{width} bits, {cluster}");
        }
    }
}

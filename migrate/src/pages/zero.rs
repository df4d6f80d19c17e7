//! Detects pages that hold only zeroes.

/// Returns whether every byte of `page` is zero.
///
/// Blocks of 64 bytes are OR-ed as words, which the compiler vectorizes; for most pages that are
/// not zero, the first block decides.
pub fn is_zero(page: &[u8]) -> bool {
    let (blocks, tail) = page.as_chunks::<64>();
    blocks.iter().all(|block| or(block) == 0) && tail.iter().all(|&byte| byte == 0)
}

fn or(block: &[u8; 64]) -> u64 {
    let (words, _) = block.as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum | u64::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_single_set_byte_anywhere() {
        let mut page = vec![0u8; 4096];
        assert!(is_zero(&page));
        for at in [0, 1, 63, 64, 2047, 4088, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page), "byte {at}");
            page[at] = 0;
        }
    }

    #[test]
    fn checks_a_tail_shorter_than_a_block() {
        assert!(!is_zero(&[0, 0, 7]));
        assert!(is_zero(&[]));
    }
}

//! Questions about many bytes, answered fast even where tests are not optimized.

const PAGE: usize = 4096;

/// Whether all are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(PAGE).all(|page| *page == [0; PAGE][..page.len()])
}

/// The first place where they differ; where one ends before the other, its end.
pub fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    for (n, (a, b)) in a.chunks(PAGE).zip(b.chunks(PAGE)).enumerate() {
        let common = a.len().min(b.len());
        if a[..common] != b[..common] {
            return (0..common).find(|i| a[*i] != b[*i]).map(|i| n * PAGE + i);
        }
    }
    (a.len() != b.len()).then(|| a.len().min(b.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_two_differences_is_found() {
        let a: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        assert_eq!(difference(&a, &a), None);
        for at in [0, 1, 4095, 4096, 8191, 9999] {
            let mut b = a.clone();
            b[at] ^= 1;
            b[9999] = 255;
            assert_eq!(difference(&a, &b), Some(at));
            assert_eq!(difference(&b[..at], &a), Some(at));
        }
    }

    #[test]
    fn one_byte_is_enough_not_to_be_zero() {
        for len in [0, 1, 4096, 4097, 9000] {
            assert!(is_zero(&vec![0; len]));
            for at in [0, len / 2, len.wrapping_sub(1)].into_iter().filter(|at| *at < len) {
                let mut bytes = vec![0; len];
                bytes[at] = 1;
                assert!(!is_zero(&bytes));
            }
        }
    }
}

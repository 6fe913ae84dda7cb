//! What an input decides.

use arbitrary::Unstructured;
use avhdx_testkit::hostile::EXTREMES;
use uuid::Uuid;

/// The bytes of an input, taken one decision after the other. Where they end, every decision is the first choice.
#[derive(Debug)]
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether all is taken.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// A number below `n`, which is not zero.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.int_in_range(0..=n - 1).unwrap_or_default()
    }

    /// True `one` times in `of`, and not where the input is over.
    pub fn chance(&mut self, one: u64, of: u64) -> bool {
        self.below(of) >= of - one
    }

    pub fn pick<'b, T>(&mut self, from: &'b [T]) -> &'b T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub fn any(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// A number that is likely to break something.
    pub fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => *self.pick(&EXTREMES),
            1 => self.any(),
            2 => self.below(12) << 20 | self.below(8),
            _ => self.below(5000),
        }
    }

    pub fn bytes(&mut self, most: u64) -> Vec<u8> {
        let len = self.below(most + 1) as usize;
        let mut bytes = vec![0; len];
        self.0.fill_buffer(&mut bytes).unwrap_or_default();
        bytes
    }

    pub fn uuid(&mut self) -> Uuid {
        Uuid::from_u128(u128::from(self.any()) << 64 | u128::from(self.any()))
    }
}

//! CPU numbers and sets of CPUs.
//!
//! A [`CpuMask`] is as long as the platform says ([`Platform::MaskWords`]), so one process
//! can hold a machine of 2 CPUs and one of 4096, and a kernel can put masks into statics.

use core::fmt;

use crate::memory::{At, AtomicInt, AtomicWord, Label, Labelled, Ordering};
use crate::platform::Platform;

/// The look at a mask that says whom a call goes to. Acquire: who finds a CPU's bit clear, and does not ask it, sees what
/// the CPU did before it cleared the bit (pair with [`MASK_CLEAR`](crate::mm_switch::MASK_CLEAR)).
pub const LOOK: Label = Label::new("cpumask.look");

/// The number of a CPU, from 0; Linux's `smp_processor_id()`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(usize);

impl CpuId {
    /// CPU number `id`.
    pub const fn new(id: usize) -> CpuId {
        CpuId(id)
    }

    /// The number.
    pub const fn get(self) -> usize {
        self.0
    }
}

impl fmt::Debug for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu{}", self.0)
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The words behind a [`CpuMask`]: an array for most, anything that derefs to a slice for the rest.
pub trait MaskWords<A> {
    /// Words enough for `bits` CPUs, each made by `word`.
    ///
    /// # Panics
    /// If the storage is too small for `bits`: a platform whose `nr_cpu_ids` contradicts its types.
    fn new(bits: usize, word: impl Fn() -> A) -> Self;

    /// The words, CPU 0 in bit 0 of the first.
    fn words(&self) -> &[A];
}

impl<A, const N: usize> MaskWords<A> for [A; N] {
    fn new(bits: usize, word: impl Fn() -> A) -> Self {
        assert!(bits <= N * usize::BITS as usize, "a mask of {N} words cannot hold {bits} CPUs");
        core::array::from_fn(|_| word())
    }

    fn words(&self) -> &[A] {
        self
    }
}

/// A set of CPUs that many CPUs change at once; Linux's `struct cpumask`.
///
/// Each bit is changed by one atomic RMW on its word; a whole mask is never read or written as one.
pub struct CpuMask<P: Platform> {
    words: P::MaskWords,
}

const WORD_BITS: usize = usize::BITS as usize;

impl<P: Platform> CpuMask<P> {
    /// The empty set, for a machine of `nr_cpu_ids` CPUs.
    pub fn new(nr_cpu_ids: usize) -> Self {
        CpuMask { words: P::MaskWords::new(nr_cpu_ids, || AtomicWord::new(0)) }
    }

    /// A set made from ready words; `const`, for statics.
    pub const fn from_parts(words: P::MaskWords) -> Self {
        CpuMask { words }
    }

    fn word(&self, cpu: CpuId) -> (&P::AtomicUsize, usize) {
        (&self.words.words()[cpu.0 / WORD_BITS], 1 << (cpu.0 % WORD_BITS))
    }

    /// Whether `cpu` is in the set.
    #[track_caller]
    pub fn test_cpu(&self, cpu: CpuId, at: impl Into<At>) -> bool {
        let (word, bit) = self.word(cpu);
        word.load(at) & bit != 0
    }

    /// Puts `cpu` into the set, as a full barrier (Linux `cpumask_set_cpu` on x86); says whether it was in already.
    ///
    /// Full because whoever sets its bit goes on to use what the bit announces, and the reader of the mask relies on
    /// seeing the bit or on having its own stores seen.
    #[track_caller]
    pub fn set_cpu(&self, cpu: CpuId, label: Label) -> bool {
        let (word, bit) = self.word(cpu);
        word.fetch_or_full(bit, label) & bit != 0
    }

    /// Takes `cpu` out of the set; says whether it was in.
    #[track_caller]
    pub fn clear_cpu(&self, cpu: CpuId, at: impl Into<At>) -> bool {
        let (word, bit) = self.word(cpu);
        word.fetch_and(!bit, at) & bit != 0
    }

    /// Empties the set with relaxed stores. Only for a mask that nobody else can see.
    pub fn clear(&self) {
        for word in self.words.words() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the set is empty, each word read with the given ordering.
    #[track_caller]
    pub fn is_empty(&self, at: impl Into<At>) -> bool {
        let at = at.into();
        self.words.words().iter().all(|word| word.load(at) == 0)
    }

    /// The CPUs of the set: each word is read once, when the iteration reaches it.
    #[track_caller]
    pub fn cpus(&self, at: impl Into<At>) -> impl Iterator<Item = CpuId> + '_ {
        let at = at.into();
        self.words.words().iter().enumerate().flat_map(move |(index, word)| bits(index, word.load(at)))
    }

    /// Takes all CPUs out of the set and yields them; each word is emptied by one full-barrier swap.
    #[track_caller]
    pub fn take(&self, label: Label) -> impl Iterator<Item = CpuId> + '_ {
        self.words.words().iter().enumerate().flat_map(move |(index, word)| bits(index, word.swap_full(0, label)))
    }

    /// Makes this set the CPUs of `among` that `keep` accepts, with relaxed stores; says whether any is left.
    ///
    /// Only for a mask that nobody else changes meanwhile. A mask in `among` is read word by word, acquire.
    #[track_caller]
    pub fn assign(&self, among: Among<'_, P>, nr_cpu_ids: usize, keep: impl Fn(CpuId) -> bool) -> bool {
        let mut any = false;
        for (index, to) in self.words.words().iter().enumerate() {
            let from = match among {
                Among::Mask(mask) => mask.0.words.words()[index].load(Ordering::Acquire.at(LOOK)),
                Among::All => match nr_cpu_ids.saturating_sub(index * WORD_BITS) {
                    WORD_BITS.. => usize::MAX,
                    left => (1 << left) - 1,
                },
            };
            let kept = bits(index, from).filter(|&cpu| keep(cpu));
            let word = kept.fold(0, |word, cpu| word | 1 << (cpu.0 % WORD_BITS));
            to.store(word, Ordering::Relaxed);
            any |= word != 0;
        }
        any
    }
}

/// The CPUs that are looked at for a call.
pub enum Among<'a, P: Platform> {
    /// All there can be.
    All,
    /// Those of a mask.
    Mask(CpuMaskView<'a, P>),
}

impl<P: Platform> Clone for Among<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Among<'_, P> {}

impl<P: Platform> fmt::Debug for Among<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Among::All => f.write_str("All"),
            Among::Mask(mask) => mask.fmt(f),
        }
    }
}

/// A set of CPUs that only others change: `mm_cpumask`, for all but the architecture.
pub struct CpuMaskView<'a, P: Platform>(&'a CpuMask<P>);

impl<'a, P: Platform> CpuMaskView<'a, P> {
    /// Whether `cpu` is in the set.
    #[track_caller]
    pub fn test_cpu(self, cpu: CpuId, at: impl Into<At>) -> bool {
        self.0.test_cpu(cpu, at)
    }

    /// Whether the set is empty, each word read with the given ordering.
    #[track_caller]
    pub fn is_empty(self, at: impl Into<At>) -> bool {
        self.0.is_empty(at)
    }

    /// The CPUs of the set: each word is read once, when the iteration reaches it.
    #[track_caller]
    pub fn cpus(self, at: impl Into<At>) -> impl Iterator<Item = CpuId> + 'a {
        self.0.cpus(at)
    }
}

impl<'a, P: Platform> From<&'a CpuMask<P>> for CpuMaskView<'a, P> {
    fn from(mask: &'a CpuMask<P>) -> Self {
        CpuMaskView(mask)
    }
}

impl<P: Platform> Clone for CpuMaskView<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for CpuMaskView<'_, P> {}

impl<P: Platform> fmt::Debug for CpuMaskView<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<P: Platform> fmt::Debug for CpuMask<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.cpus(Ordering::Relaxed)).finish()
    }
}

/// The CPUs of word `index` of a mask.
fn bits(index: usize, mut word: usize) -> impl Iterator<Item = CpuId> {
    core::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(CpuId(index * WORD_BITS + bit))
    })
}

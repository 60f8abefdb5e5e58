//! [`Native`]: `core::sync::atomic`, at the cost of hand-written code.
//!
//! On x86 a locked instruction is a full barrier, so the `*_full` operations are one instruction there; elsewhere they
//! are fence, relaxed operation, fence, which is what Linux promises for its value-returning atomics.

use core::cell::Cell;
use core::sync::atomic::{self, Ordering};

use crate::memory::{At, AtomicInt, AtomicWord, Label, LocalWord, Memory};

/// The memory of the machine this code runs on.
///
/// All its word types have a `const fn` constructor (`core`'s own types, and [`Local::from_raw`]), so a kernel can put
/// whole structures into statics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

/// A native word that is local to a CPU or a task: an atomic that is only loaded and stored relaxed, one plain move.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Local<A>(A);

impl<A> Local<A> {
    /// Wraps an atomic; `const`, for statics.
    pub const fn from_raw(atomic: A) -> Local<A> {
        Local(atomic)
    }
}

/// Runs a relaxed RMW so that it is a full barrier.
#[inline(always)]
fn full<R>(rmw: impl FnOnce(Ordering) -> R) -> R {
    // Miri goes by C11, where no RMW is a fence.
    if cfg!(all(any(target_arch = "x86", target_arch = "x86_64"), not(miri))) {
        // One `lock`ed instruction: the processor orders it against everything (Intel SDM vol. 3, "Memory Ordering";
        // AMD APM vol. 2, 7.3), the compiler fences keep the compiler from moving relaxed accesses across it.
        atomic::compiler_fence(Ordering::SeqCst);
        let value = rmw(Ordering::SeqCst);
        atomic::compiler_fence(Ordering::SeqCst);
        value
    } else {
        atomic::fence(Ordering::SeqCst);
        let value = rmw(Ordering::Relaxed);
        atomic::fence(Ordering::SeqCst);
        value
    }
}

macro_rules! atomic_word {
    ($atomic:ty, $value:ty $(, $generic:ident)?) => {
        impl$(<$generic>)? AtomicWord<$value> for $atomic {
            #[inline(always)]
            fn new(value: $value) -> Self {
                <$atomic>::new(value)
            }
            #[inline(always)]
            fn load(&self, at: impl Into<At>) -> $value {
                <$atomic>::load(self, at.into().order)
            }
            #[inline(always)]
            fn store(&self, value: $value, at: impl Into<At>) {
                <$atomic>::store(self, value, at.into().order)
            }
            #[inline(always)]
            fn swap(&self, value: $value, at: impl Into<At>) -> $value {
                <$atomic>::swap(self, value, at.into().order)
            }
            #[inline(always)]
            fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                at: impl Into<At>,
                failure: Ordering,
            ) -> Result<$value, $value> {
                <$atomic>::compare_exchange(self, current, new, at.into().order, failure)
            }
            #[inline(always)]
            fn swap_full(&self, value: $value, _: Label) -> $value {
                full(|order| <$atomic>::swap(self, value, order))
            }
            #[inline(always)]
            fn compare_exchange_full(&self, current: $value, new: $value, _: Label) -> Result<$value, $value> {
                full(|order| <$atomic>::compare_exchange(self, current, new, order, Ordering::Relaxed))
            }
        }
    };
}

atomic_word!(atomic::AtomicUsize, usize);
atomic_word!(atomic::AtomicU8, u8);
atomic_word!(atomic::AtomicPtr<T>, *mut T, T);

macro_rules! fetch {
    ($($plain:ident $full:ident),*) => {
        impl AtomicInt for atomic::AtomicUsize {
            $(
                #[inline(always)]
                fn $plain(&self, value: usize, at: impl Into<At>) -> usize {
                    atomic::AtomicUsize::$plain(self, value, at.into().order)
                }
                #[inline(always)]
                fn $full(&self, value: usize, _: Label) -> usize {
                    full(|order| atomic::AtomicUsize::$plain(self, value, order))
                }
            )*
        }
    };
}

fetch!(fetch_add fetch_add_full, fetch_sub fetch_sub_full, fetch_or fetch_or_full, fetch_and fetch_and_full);

impl<T: Copy, A: AtomicWord<T>> LocalWord<T> for Local<A> {
    #[inline(always)]
    fn new(value: T) -> Self {
        Local(A::new(value))
    }
    #[inline(always)]
    fn get(&self) -> T {
        self.0.load(Ordering::Relaxed)
    }
    #[inline(always)]
    fn set(&self, value: T) {
        self.0.store(value, Ordering::Relaxed)
    }
}

/// A cell is one too, where the compiler can be told that nobody else has it: its accesses need not be single instructions. A kernel
/// that keeps it in a structure which other CPUs see answers for that itself.
impl<T: Copy> LocalWord<T> for Cell<T> {
    #[inline(always)]
    fn new(value: T) -> Self {
        Cell::new(value)
    }
    #[inline(always)]
    fn get(&self) -> T {
        Cell::get(self)
    }
    #[inline(always)]
    fn set(&self, value: T) {
        Cell::set(self, value);
    }
}

impl Memory for Native {
    type AtomicUsize = atomic::AtomicUsize;
    type AtomicPtr<T> = atomic::AtomicPtr<T>;
    type LocalUsize = Local<atomic::AtomicUsize>;
    type LocalPtr<T> = Local<atomic::AtomicPtr<T>>;

    #[inline(always)]
    fn fence(self, at: impl Into<At>) {
        atomic::fence(at.into().order)
    }

    #[inline(always)]
    fn spin_hint(self) {
        core::hint::spin_loop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Label, Labelled, Ordering::*};

    const HERE: Label = Label::new("test.here");

    #[test]
    fn words_behave_as_cores_do() {
        let word = <atomic::AtomicUsize as AtomicWord<usize>>::new(1);
        AtomicWord::store(&word, 2, Release.at(HERE));
        assert_eq!(AtomicWord::load(&word, Acquire.at(HERE)), 2);
        assert_eq!(AtomicInt::fetch_add_full(&word, 3, HERE), 2);
        assert_eq!(AtomicInt::fetch_sub_full(&word, 1, HERE), 5);
        assert_eq!(AtomicInt::fetch_or_full(&word, 8, HERE), 4);
        assert_eq!(AtomicInt::fetch_and_full(&word, 8, HERE), 12);
        assert_eq!(AtomicWord::swap_full(&word, 7, HERE), 8);
        assert_eq!(AtomicWord::compare_exchange_full(&word, 1, 0, HERE), Err(7));
        assert_eq!(AtomicWord::compare_exchange_full(&word, 7, 0, HERE), Ok(7));
        assert_eq!(AtomicWord::compare_exchange(&word, 0, 9, AcqRel, Relaxed), Ok(0));
    }

    #[test]
    fn local_words_are_as_small_as_what_they_hold() {
        assert_eq!(size_of::<Local<atomic::AtomicUsize>>(), size_of::<usize>());
        let word = <Local<atomic::AtomicPtr<u8>> as LocalWord<*mut u8>>::new(core::ptr::null_mut());
        let mut byte = 0;
        word.set(&mut byte);
        assert_eq!(word.get(), &raw mut byte);
    }

    #[test]
    fn spin_until_polls_until_ready() {
        let mut rounds = 0;
        let value = Native.spin_until(|| {
            rounds += 1;
            (rounds == 3).then_some("ready")
        });
        assert_eq!((value, rounds), ("ready", 3));
    }
}

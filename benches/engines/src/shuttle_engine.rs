//! shuttle: a platform over its atomics, which are sequentially consistent whatever the ordering.

use core::sync::atomic::Ordering;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lazytlb_core::memory::{At, AtomicInt, AtomicWord, Label, Memory};
use lazytlb_core::native::Native;
use lazytlb_programs::{read, retire};
use shuttle::sync::atomic;
use shuttle::{check_dfs, check_random};

use crate::Measured;

#[derive(Clone, Copy)]
struct Shuttle;

struct Word<A>(A);

macro_rules! word {
    ($atomic:ty, $value:ty $(, $generic:ident)?) => {
        impl$(<$generic>)? AtomicWord<$value> for Word<$atomic> {
            fn new(value: $value) -> Self {
                Word(<$atomic>::new(value))
            }
            fn load(&self, at: impl Into<At>) -> $value {
                self.0.load(at.into().order)
            }
            fn store(&self, value: $value, at: impl Into<At>) {
                self.0.store(value, at.into().order)
            }
            fn swap(&self, value: $value, at: impl Into<At>) -> $value {
                self.0.swap(value, at.into().order)
            }
            fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                at: impl Into<At>,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.0.compare_exchange(current, new, at.into().order, failure)
            }
            fn swap_full(&self, value: $value, _: Label) -> $value {
                self.0.swap(value, Ordering::SeqCst)
            }
            fn compare_exchange_full(&self, current: $value, new: $value, _: Label) -> Result<$value, $value> {
                self.0.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
            }
        }
    };
}

word!(atomic::AtomicUsize, usize);
word!(atomic::AtomicPtr<T>, *mut T, T);

macro_rules! fetch {
    ($($plain:ident $full:ident),*) => {
        impl AtomicInt for Word<atomic::AtomicUsize> {
            $(
                fn $plain(&self, value: usize, at: impl Into<At>) -> usize {
                    self.0.$plain(value, at.into().order)
                }
                fn $full(&self, value: usize, _: Label) -> usize {
                    self.0.$plain(value, Ordering::SeqCst)
                }
            )*
        }
    };
}

fetch!(fetch_add fetch_add_full, fetch_sub fetch_sub_full, fetch_or fetch_or_full, fetch_and fetch_and_full);

impl Memory for Shuttle {
    type AtomicUsize = Word<atomic::AtomicUsize>;
    type AtomicPtr<T> = Word<atomic::AtomicPtr<T>>;
    type LocalUsize = <Native as Memory>::LocalUsize;
    type LocalPtr<T> = <Native as Memory>::LocalPtr<T>;

    fn fence(self, at: impl Into<At>) {
        atomic::fence(at.into().order);
    }

    fn spin_hint(self) {
        shuttle::hint::spin_loop();
    }
}

struct Shared {
    published: Word<atomic::AtomicUsize>,
    slots: Vec<Word<atomic::AtomicUsize>>,
    /// 7 while the object lives.
    body: Word<atomic::AtomicUsize>,
}

/// More executions than this are not waited for.
const MOST: u64 = 1_000_000;

pub(crate) fn run() -> Vec<Measured> {
    let mut all = Vec::new();
    for readers in 1..=2 {
        all.push(measure(
            format!("hazard {readers}x1 exhaustive sc"),
            |program| {
                check_dfs(program, Some(MOST as usize));
            },
            readers,
        ));
    }
    for readers in 1..=3 {
        all.push(measure(format!("hazard {readers}x1 random sc"), |program| check_random(program, 200_000), readers));
    }
    all
}

fn measure(what: String, check: impl FnOnce(Box<dyn Fn() + Send + Sync>), readers: usize) -> Measured {
    let executions = Arc::new(AtomicU64::new(0));
    let exhaustive = what.contains("exhaustive");
    Measured::time(what, || {
        let counted = Arc::clone(&executions);
        check(Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            program(readers);
        }));
        let executions = executions.load(Ordering::Relaxed);
        (executions, None, exhaustive && executions < MOST)
    })
}

fn program(readers: usize) {
    let shared = Arc::new(Shared {
        published: Word::new(1),
        slots: (0..readers).map(|_| Word::new(0)).collect(),
        body: Word::new(7),
    });
    let threads: Vec<_> = (0..readers)
        .map(|reader| {
            let shared = Arc::clone(&shared);
            shuttle::thread::spawn(move || {
                let value =
                    read(Shuttle, &shared.published, &shared.slots[reader], || shared.body.load(Ordering::Relaxed));
                assert!(value.is_none_or(|value| value == 7), "used after it was freed");
            })
        })
        .collect();
    if retire(Shuttle, &shared.published, shared.slots.iter()) {
        shared.body.store(0, Ordering::Relaxed);
    }
    for thread in threads {
        thread.join().expect("a reader does not panic");
    }
}

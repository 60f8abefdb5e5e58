//! loom, over the platform of `tests/loom`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lazytlb_core::memory::{AtomicWord, Memory};
use lazytlb_loom::Loom;
use lazytlb_programs::{read, retire};
use loom::cell::UnsafeCell;

use crate::Measured;

type Word = <Loom as Memory>::AtomicUsize;

struct Shared {
    published: Word,
    slots: Vec<Word>,
    body: Word,
    /// Freeing writes it and using reads it, so that loom itself reports a use that is not ordered before the free.
    life: UnsafeCell<()>,
}

// SAFETY: loom checks every access to `life`; a conflict is what it looks for.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

pub(crate) fn run() -> Vec<Measured> {
    [1, 2].map(explore).into()
}

fn explore(readers: usize) -> Measured {
    let executions = Arc::new(AtomicU64::new(0));
    Measured::time(format!("hazard {readers}x1 exhaustive c11"), || {
        let counted = Arc::clone(&executions);
        loom::model(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            program(readers);
        });
        (executions.load(Ordering::Relaxed), None, true)
    })
}

fn program(readers: usize) {
    let shared = loom::sync::Arc::new(Shared {
        published: Word::new(1),
        slots: (0..readers).map(|_| Word::new(0)).collect(),
        body: Word::new(7),
        life: UnsafeCell::new(()),
    });
    let threads: Vec<_> = (0..readers)
        .map(|reader| {
            let shared = loom::sync::Arc::clone(&shared);
            loom::thread::spawn(move || {
                read(Loom, &shared.published, &shared.slots[reader], || {
                    shared.life.with(|_| ());
                    shared.body.load(Ordering::Relaxed)
                });
            })
        })
        .collect();
    if retire(Loom, &shared.published, shared.slots.iter()) {
        shared.life.with_mut(|_| ());
    }
    for thread in threads {
        thread.join().expect("a reader does not panic");
    }
}

//! The skeleton driver of 2008, and its race: `cargo run -p lazytlb-mmu-notifier --example skeleton_driver`.
//!
//! The posting had a driver to begin with. It counts the invalidations that go on, and maps nothing meanwhile: it looks a page up, takes its lock, and maps
//! what it has found if the count is zero. That does not tell that an invalidation has begun *and ended* between the two. Here one does, and the device
//! comes to translate to a frame that is free. With a sequence beside the count, as KVM has it, the driver sees it and begins anew.
//!
//! The model finds the same without being told where to look: `lazytlb bugs P6`.

use std::cell::Cell;
use std::sync::Mutex;

use lazytlb_core::ARef;
use lazytlb_mmu_notifier::{Event, Invalidation, Mirror, MmuNotifier, Range, RangeGuard, Subscription};
use lazytlb_toy_notifier::{ByHazards, Toy, ToyMm};

type Kernel = Toy<ByHazards>;
type Mm = ToyMm<ByHazards>;

const PAGE: usize = 0x1000;

/// What the driver's lock guards.
#[derive(Default, Debug)]
struct State {
    /// Invalidations that go on.
    active: usize,
    /// Invalidations that are over. The skeleton had none.
    seq: usize,
    /// The frame that the device translates to.
    spte: Option<usize>,
}

/// The skeleton.
#[derive(Default, Debug)]
struct Skeleton(Mutex<State>);

impl MmuNotifier<Kernel> for Skeleton {
    fn release(&self, _: &Mm) {
        self.0.lock().unwrap().spte = None;
    }
}

impl Mirror<Kernel> for Skeleton {
    fn invalidate_range_start(&self, _: &Mm, _: Invalidation<'_>) {
        let mut state = self.0.lock().unwrap();
        state.active += 1;
        state.spte = None;
    }

    fn invalidate_range_end(&self, _: &Mm, _: Invalidation<'_>) {
        let mut state = self.0.lock().unwrap();
        state.active -= 1;
        state.seq += 1;
    }
}

/// The page's frame is moved: the old one is free then.
fn moves(mm: &Mm, pte: &Cell<usize>) {
    let range = Range::new(PAGE..PAGE + 0x1000, Event::Clear).unwrap();
    let guard = RangeGuard::start(Kernel::new(), mm, &range);
    pte.set(pte.get() + 1);
    drop(guard);
}

/// The device faults; `meanwhile` runs between the lookup and the lock, the first time.
fn populates(skeleton: &Skeleton, pte: &Cell<usize>, has_sequence: bool, meanwhile: impl Fn()) -> usize {
    for attempt in 0.. {
        let seq = skeleton.0.lock().unwrap().seq;
        let frame = pte.get();
        if attempt == 0 {
            meanwhile();
        }
        let mut state = skeleton.0.lock().unwrap();
        if state.active == 0 && (!has_sequence || state.seq == seq) {
            state.spte = Some(frame);
            return frame;
        }
    }
    unreachable!("it maps the page at last")
}

/// The frame that the device comes to use, and the one where the page is.
fn race(has_sequence: bool) -> (usize, usize) {
    let mm: ARef<Mm> = Mm::boxed();
    let pte = Cell::new(0);
    let skeleton = Subscription::mirror(Kernel::new(), &mut mm.mmap_write_lock(), Skeleton::default())
        .expect("the process has users, and there are no signals");
    let frame = populates(&skeleton, &pte, has_sequence, || moves(&mm, &pte));
    (frame, pte.get())
}

fn main() {
    for has_sequence in [false, true] {
        let (used, mapped) = race(has_sequence);
        let what = if has_sequence { "a count and a sequence" } else { "a count alone (2008)" };
        let verdict = if used == mapped { "right" } else { "it is free" };
        println!("{what}: the device uses frame {used}, the page is in frame {mapped}: {verdict}");
    }
}

#[test]
fn the_skeleton_maps_a_free_frame_and_the_one_with_a_sequence_does_not() {
    main();
    assert_eq!(race(false), (0, 1));
    assert_eq!(race(true), (1, 1));
}

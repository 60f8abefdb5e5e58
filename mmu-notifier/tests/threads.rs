//! Threads that subscribe, invalidate, look up and go, under each scheme of walks. What is freed is never called, and no translation leads to a frame
//! that is free (I1, I5, I7).

use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::thread;

use lazytlb_mmu_notifier::{
    Contract, Event, IntervalNode, Invalidated, Invalidating, Invalidation, Mirror, MmuIntervalNotifier, MmuNotifier,
    Node, Range, RangeGuard, SharedSubscription, WouldBlock,
};
use lazytlb_toy_notifier::{ByEpochs, ByHazards, BySrcu, Scheme, Toy, ToyMm, run_work};

/// How often each thread does what it does.
const ROUNDS: usize = if cfg!(miri) { 20 } else { 100_000 };

/// Says, when it is called, whether it is still there.
struct Fragile {
    is_there: AtomicBool,
    running: AtomicUsize,
    released: AtomicBool,
}

impl Fragile {
    fn called(&self) {
        self.running.fetch_add(1, Relaxed);
        assert!(self.is_there.load(Relaxed), "who has unsubscribed is called");
        thread::yield_now();
        assert!(self.is_there.load(Relaxed), "who is called has gone");
        self.running.fetch_sub(1, Relaxed);
    }
}

impl<S: Scheme> MmuNotifier<Toy<S>> for Fragile {
    fn release(&self, _: &ToyMm<S>) {
        self.released.store(true, Relaxed);
    }
}

impl<S: Scheme> Mirror<Toy<S>> for Fragile {
    fn invalidate_range_start(&self, _: &ToyMm<S>, _: Invalidation<'_>) {
        self.called();
    }
    fn invalidate_range_end(&self, _: &ToyMm<S>, _: Invalidation<'_>) {
        self.called();
    }
}

/// Two threads invalidate; two subscribe, unsubscribe and free.
fn who_is_freed_is_not_called<S: Scheme>() {
    let (mm, kernel) = (ToyMm::<S>::new(), Toy::<S>::new());
    let invalidates = || {
        for round in 0..ROUNDS {
            let range = Range::new(round..round + 1, Event::Clear).unwrap();
            let _lock = mm.others.read().unwrap();
            drop(RangeGuard::start(kernel, &mm, &range));
        }
    };
    let subscribes = || {
        for _ in 0..ROUNDS / 4 {
            let one = Box::new(Fragile { is_there: true.into(), running: 0.into(), released: false.into() });
            // SAFETY: freed behind unregister; any thread may call it.
            let node = Box::new(unsafe { Node::new(Contract::Mirror(NonNull::<Fragile>::from(&*one))) });
            // SAFETY: unsubscribed below; the mm stays.
            unsafe { mm.chain.register(kernel, &mut mm.mmap_write_lock(), &node) }.unwrap();
            thread::yield_now();
            // SAFETY: nobody else does.
            unsafe { mm.chain.unregister(kernel, &mm, &node) }.unwrap();
            assert_eq!(one.running.load(Relaxed), 0, "a callback runs behind unregister");
            assert!(one.released.load(Relaxed));
            one.is_there.store(false, Relaxed);
            drop((node, one));
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(invalidates);
            scope.spawn(subscribes);
        }
    });
    mm.chain.destroy(kernel);
}

/// A frame is in use.
const USED: usize = 1;
const FRAMES: usize = 8;

/// One page of an address space, and the frames that it can be in.
struct Page {
    /// Which frame the entry leads to.
    pte: AtomicUsize,
    frames: [AtomicUsize; FRAMES],
}

/// A device with one translation of the page.
struct Device {
    /// The frame; one more, 0 for none.
    spte: Mutex<usize>,
}

impl<S: Scheme> MmuIntervalNotifier<Toy<S>> for Device {
    fn invalidate<'a>(&self, invalidating: Invalidating<'a, Toy<S>>) -> Result<Invalidated<'a, Toy<S>>, WouldBlock> {
        let mut spte = self.spte.lock().unwrap();
        let invalidated = invalidating.set_seq();
        *spte = 0;
        Ok(invalidated)
    }
}

/// A thread moves the page from frame to frame; two devices look it up and use it; a third comes and goes.
fn nothing_leads_to_what_is_free<S: Scheme>() {
    let (mm, kernel) = (ToyMm::<S>::new(), Toy::<S>::new());
    let page = Page { pte: 0.into(), frames: Default::default() };
    page.frames[0].store(USED, Relaxed);
    let over = AtomicBool::new(false);
    let moves = || {
        for round in 0..ROUNDS {
            let (old, new) = (page.pte.load(Relaxed), (round + 1) % FRAMES);
            let range = Range::new(0x1000..0x2000, Event::Clear).unwrap();
            let _lock = mm.others.read().unwrap();
            let guard = RangeGuard::start(kernel, &mm, &range);
            page.frames[new].store(USED, Relaxed);
            page.pte.store(new, Release);
            page.frames[old].store(0, Release);
            drop(guard);
        }
        over.store(true, Relaxed);
    };
    let uses = |device: &Device, node: &IntervalNode<Toy<S>>| {
        let seq = mm.chain.read_begin(kernel, node);
        let frame = page.pte.load(Acquire);
        let mut spte = device.spte.lock().unwrap();
        if !node.read_retry(seq) {
            *spte = frame + 1;
        }
        // Whatever it leads to is in use, as long as the lock is held.
        if let Some(frame) = spte.checked_sub(1) {
            assert_eq!(page.frames[frame].load(Acquire), USED, "the device has frame {frame}, which is free");
        }
    };
    let lives = |rounds: usize| {
        let device = Box::new(Device { spte: Mutex::new(0) });
        // SAFETY: freed behind the removal; any thread may call it.
        let node = Box::new(unsafe { IntervalNode::new(NonNull::<Device>::from(&*device)) });
        // SAFETY: removed below; the mm stays.
        unsafe { mm.chain.insert_interval(kernel, &mut mm.mmap_write_lock(), &node, 0x1000, 0x1000) }.unwrap();
        for _ in 0..rounds {
            if over.load(Relaxed) {
                break;
            }
            uses(&device, &node);
        }
        // SAFETY: nobody else does.
        unsafe { mm.chain.remove_interval(kernel, &mm, &node) }.unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(moves);
        scope.spawn(|| lives(usize::MAX));
        scope.spawn(|| lives(usize::MAX));
        scope.spawn(|| {
            while !over.load(Relaxed) {
                lives(3);
            }
        });
    });
    mm.chain.destroy(kernel);
}

/// Two threads share a subscriber, and make a new one whenever both have gone; one goes where it must not wait. Another invalidates.
fn who_is_shared_goes_with_its_last_user<S: Scheme>() {
    let (mm, kernel, made) = (ToyMm::<S>::boxed(), Toy::<S>::new(), AtomicUsize::new(0));
    let invalidates = || {
        for round in 0..ROUNDS {
            let range = Range::new(round..round + 1, Event::Clear).unwrap();
            let _lock = mm.others.read().unwrap();
            drop(RangeGuard::start(kernel, &*mm, &range));
        }
    };
    let shares = |waits: bool| {
        for _ in 0..ROUNDS / 4 {
            let make = || {
                made.fetch_add(1, Relaxed);
                Fragile { is_there: true.into(), running: 0.into(), released: false.into() }
            };
            let one = SharedSubscription::mirror(kernel, &mut mm.mmap_write_lock(), make).unwrap();
            assert!(one.is_there.load(Relaxed) && !one.released.load(Relaxed), "it has a user");
            thread::yield_now();
            if waits {
                drop(one);
            } else {
                one.put();
                thread::yield_now();
                run_work();
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(invalidates);
        scope.spawn(|| shares(true));
        scope.spawn(|| shares(false));
    });
    assert!(made.into_inner() > 1);
    assert_eq!(mm.count(), 1, "each has given its reference back");
    mm.chain.destroy(kernel);
}

impl Drop for Fragile {
    fn drop(&mut self) {
        assert_eq!(self.running.load(Relaxed), 0, "a callback runs of what is dropped");
        self.is_there.store(false, Relaxed);
    }
}

macro_rules! under {
    ($($module:ident $scheme:ty),*) => {$(
        mod $module {
            use super::*;

            #[test]
            fn who_is_freed_is_not_called() {
                super::who_is_freed_is_not_called::<$scheme>();
            }

            #[test]
            fn nothing_leads_to_what_is_free() {
                super::nothing_leads_to_what_is_free::<$scheme>();
            }

            #[test]
            fn who_is_shared_goes_with_its_last_user() {
                super::who_is_shared_goes_with_its_last_user::<$scheme>();
            }
        }
    )*};
}

under!(hazards ByHazards, epochs ByEpochs, srcu BySrcu);

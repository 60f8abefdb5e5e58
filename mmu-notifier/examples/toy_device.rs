//! A device with a TLB of its own that uses a process's memory: `cargo run -p lazytlb-mmu-notifier --example toy_device`.
//!
//! A process has one page, which the kernel moves from frame to frame, as compaction does. The device translates by a table that its driver fills and a
//! TLB that caches it, and holds no reference to any frame. Whatever it uses must be in use: the driver is subscribed to the page's address, drops the
//! translation when it is told, and makes one only of what it has looked up since.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::thread;

use lazytlb_core::ARef;
use lazytlb_mmu_notifier::{
    Event, IntervalSubscription, Invalidated, Invalidating, MmuIntervalNotifier, Range, RangeGuard, WouldBlock,
};
use lazytlb_toy_notifier::{ByHazards, Toy, ToyMm};

type Kernel = Toy<ByHazards>;
type Mm = ToyMm<ByHazards>;

const PAGE: usize = 0x1000;
const PAGE_SIZE: usize = 0x1000;
const FRAMES: usize = 4;
const MOVES: usize = if cfg!(miri) { 20 } else { 1000 };

/// The process's page table, of one entry, and the frames of memory: whether each is in use.
struct Memory {
    pte: AtomicUsize,
    used: [AtomicBool; FRAMES],
}

/// What the device translates by: its driver's table of one entry, and the TLB that has it cached.
#[derive(Default, Debug)]
struct Translations {
    spte: Option<usize>,
    tlb: Option<usize>,
}

/// The driver. Its lock guards what the device translates by.
#[derive(Default, Debug)]
struct Driver {
    translations: Mutex<Translations>,
    dropped: AtomicUsize,
}

impl MmuIntervalNotifier<Kernel> for Driver {
    fn invalidate<'a>(&self, invalidating: Invalidating<'a, Kernel>) -> Result<Invalidated<'a, Kernel>, WouldBlock> {
        let mut translations = self.translations.lock().unwrap();
        // Who has looked something up before begins anew.
        let invalidated = invalidating.set_seq();
        if translations.spte.take().is_some() {
            self.dropped.fetch_add(1, Relaxed);
        }
        // The table first: what is flushed is not cached again.
        translations.tlb = None;
        Ok(invalidated)
    }
}

/// The kernel moves the page, each time when the device has used it where it is.
fn moves(mm: &Mm, memory: &Memory, uses: &AtomicUsize) {
    let range = Range::new(PAGE..PAGE + PAGE_SIZE, Event::Clear).unwrap();
    for _ in 0..MOVES {
        let before = uses.load(Relaxed);
        while uses.load(Relaxed) == before {
            thread::yield_now();
        }
        // Any of the locks that registration takes as well: here, the page table's.
        let _ptl = mm.others.read().unwrap();
        let _guard = RangeGuard::start(Kernel::new(), mm, &range);
        let old = memory.pte.load(Relaxed);
        let new = (old + 1) % FRAMES;
        memory.used[new].store(true, Relaxed);
        memory.pte.store(new, Release);
        memory.used[old].store(false, Release);
    }
}

/// The device uses the page by its TLB, which it fills from its driver's table. Says whether it could.
fn translates(translations: &mut Translations, memory: &Memory) -> bool {
    translations.tlb = translations.tlb.or(translations.spte);
    let Some(frame) = translations.tlb else { return false };
    if !memory.used[frame].load(Acquire) {
        eprintln!("the device uses frame {frame}, which is free");
        std::process::exit(1);
    }
    true
}

/// The device wants to use the page: the driver maps it, if it is not mapped. Says how often it had to begin anew.
fn uses(subscription: &IntervalSubscription<Kernel, Driver>, memory: &Memory) -> usize {
    let mut retries = 0;
    while !translates(&mut subscription.translations.lock().unwrap(), memory) {
        let ticket = subscription.read_begin();
        let frame = memory.pte.load(Acquire);
        let mut translations = subscription.translations.lock().unwrap();
        if ticket.install(&mut *translations, |translations| translations.spte = Some(frame)).is_err() {
            retries += 1;
        }
    }
    retries
}

fn main() {
    let mm: ARef<Mm> = Mm::boxed();
    let memory = Memory { pte: 0.into(), used: [true, false, false, false].map(AtomicBool::new) };
    let driver = Driver::default();
    // With a reference to the mm's struct, and the driver in memory of its own.
    let subscription =
        IntervalSubscription::interval(Kernel::new(), &mut mm.mmap_write_lock(), driver, PAGE, PAGE_SIZE)
            .expect("the process has users, and there are no signals");
    let (is_over, used) = (AtomicBool::new(false), AtomicUsize::new(0));
    let retries = thread::scope(|scope| {
        let device = scope.spawn(|| {
            let mut retries = 0;
            while !is_over.load(Relaxed) {
                retries += uses(&subscription, &memory);
                used.fetch_add(1, Relaxed);
                // The lock is not fair.
                thread::yield_now();
            }
            retries
        });
        moves(&mm, &memory, &used);
        is_over.store(true, Relaxed);
        device.join().expect("whatever it used was in use")
    });
    let used = used.into_inner();
    println!("The page was moved {MOVES} times. The device used it {used} times, and was right each time:");
    println!("{} translations were dropped, {retries} were looked up in vain.", subscription.dropped.load(Relaxed));
    // The process exits, and the device's file is closed behind that: any order will do.
    mm.users.store(0, Relaxed);
    mm.chain.release(Kernel::new(), &mm);
    drop(mm);
    drop(subscription);
}

#[test]
fn it_runs() {
    main();
}

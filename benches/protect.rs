//! Protecting one shared object, ours beside the reclamation crates: `cargo bench --bench protect`.
//!
//! Everybody goes through one trait: [`read`](Protect::read) protects the object, reads its field and lets go;
//! [`replace`](Protect::replace) puts a new object in its place and retires the old one. One thread, so what is seen is
//! the price of the instructions and not of contention: shared counters look as cheap as private slots here.
//!
//! `borrow` rows are what a strategy does when a CPU borrows an mm it already keeps alive: no re-validation, which is why
//! they may be cheaper than any general scheme. The others protect an object that may go at any moment.
//!
//! `hazptr` is measured because it is on the list of peers; it is unmaintained since 2019 and unsound by Miri's word
//! (ARCHITECTURE.md), so nothing depends on it.

use core::hint::black_box;
use core::sync::atomic::Ordering::*;
use core::sync::atomic::{AtomicPtr, AtomicUsize};
use std::cell::Cell;
use std::sync::Arc;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use crossbeam_epoch::{self as epoch, Atomic, Collector, LocalHandle, Owned};
use haphazard::HazardPointer;
use hazptr::typenum::U0;
use lazytlb::core::native::Native;
use lazytlb_programs::read;

/// The object: its field on a line of its own.
#[repr(align(128))]
struct Object(usize);

trait Protect {
    const NAME: &'static str;
    /// The first object is in place.
    fn new() -> Self;
    /// Protects the object, reads its field, lets go.
    fn read(&mut self) -> usize;
    /// Puts a new object in place and retires the old one.
    fn replace(&mut self);
}

/// Nothing: what a look costs at least.
struct Bare(AtomicPtr<Object>);

impl Protect for Bare {
    const NAME: &'static str = "no protection";
    fn new() -> Self {
        Bare(AtomicPtr::new(Box::into_raw(Box::new(Object(7)))))
    }
    fn read(&mut self) -> usize {
        // SAFETY: replaced only by `replace`, which has `&mut self`.
        unsafe { &*self.0.load(Acquire) }.0
    }
    fn replace(&mut self) {
        let old = self.0.swap(Box::into_raw(Box::new(Object(7))), AcqRel);
        // SAFETY: made by `Box::into_raw`, and nobody reads: `&mut self`.
        drop(unsafe { Box::from_raw(old) });
    }
}

/// A count in the object, as mmgrab and mmdrop.
struct Counted(Arc<Object>);

impl Protect for Counted {
    const NAME: &'static str = "Arc (a counted reference)";
    fn new() -> Self {
        Counted(Arc::new(Object(7)))
    }
    fn read(&mut self) -> usize {
        black_box(Arc::clone(&self.0)).0
    }
    fn replace(&mut self) {
        self.0 = Arc::new(Object(7));
    }
}

/// The textbook hazard pointer that the lab's machine is tested on: publish, fence, look again.
struct Textbook {
    published: AtomicUsize,
    slot: AtomicUsize,
}

impl Protect for Textbook {
    const NAME: &'static str = "hazard slot, fence, re-check";
    fn new() -> Self {
        let object = Box::into_raw(Box::new(Object(7)));
        Textbook { published: AtomicUsize::new(object.expose_provenance()), slot: AtomicUsize::new(0) }
    }
    fn read(&mut self) -> usize {
        let object: *const Object = core::ptr::with_exposed_provenance(self.published.load(Relaxed));
        // SAFETY: replaced only by `replace`, which has `&mut self`.
        read(Native, &self.published, &self.slot, || unsafe { &*object }.0).unwrap_or(0)
    }
    fn replace(&mut self) {
        let new = Box::into_raw(Box::new(Object(7)));
        let old = self.published.swap(new.expose_provenance(), AcqRel);
        core::sync::atomic::fence(SeqCst);
        assert_eq!(self.slot.load(Acquire), 0);
        // SAFETY: made by `Box::into_raw`, and the slot is empty.
        drop(unsafe { Box::from_raw(core::ptr::with_exposed_provenance_mut::<Object>(old)) });
    }
}

/// `HazardConvert`'s slot alone: the owner keeps the object alive, so it is published and taken back, no more.
struct BorrowSlot {
    object: Box<Object>,
    slot: AtomicPtr<Object>,
}

impl Protect for BorrowSlot {
    const NAME: &'static str = "borrow: hazard slot, no re-check";
    fn new() -> Self {
        BorrowSlot { object: Box::new(Object(7)), slot: AtomicPtr::default() }
    }
    fn read(&mut self) -> usize {
        self.slot.store(&raw mut *self.object, Relaxed);
        let value = black_box(&self.object).0;
        self.slot.store(core::ptr::null_mut(), Release);
        value
    }
    fn replace(&mut self) {
        let old = core::mem::replace(&mut self.object, Box::new(Object(7)));
        assert!(self.slot.load(Acquire).is_null());
        drop(old);
    }
}

struct EpochPin(Atomic<Object>);

impl Protect for EpochPin {
    const NAME: &'static str = "crossbeam-epoch, pin()";
    fn new() -> Self {
        EpochPin(Atomic::new(Object(7)))
    }
    fn read(&mut self) -> usize {
        let guard = epoch::pin();
        // SAFETY: never null, and retired under the same collector.
        unsafe { self.0.load(Acquire, &guard).deref() }.0
    }
    fn replace(&mut self) {
        let guard = epoch::pin();
        let old = self.0.swap(Owned::new(Object(7)), AcqRel, &guard);
        // SAFETY: no longer reachable.
        unsafe { guard.defer_destroy(old) };
    }
}

struct EpochHandle {
    object: Atomic<Object>,
    handle: LocalHandle,
}

impl Protect for EpochHandle {
    const NAME: &'static str = "crossbeam-epoch, own collector";
    fn new() -> Self {
        EpochHandle { object: Atomic::new(Object(7)), handle: Collector::new().register() }
    }
    fn read(&mut self) -> usize {
        let guard = self.handle.pin();
        // SAFETY: never null, and retired under the same collector.
        unsafe { self.object.load(Acquire, &guard).deref() }.0
    }
    fn replace(&mut self) {
        let guard = self.handle.pin();
        let old = self.object.swap(Owned::new(Object(7)), AcqRel, &guard);
        // SAFETY: no longer reachable.
        unsafe { guard.defer_destroy(old) };
    }
}

struct ArcSwapLoad(arc_swap::ArcSwap<Object>);

impl Protect for ArcSwapLoad {
    const NAME: &'static str = "arc-swap, load()";
    fn new() -> Self {
        ArcSwapLoad(arc_swap::ArcSwap::from_pointee(Object(7)))
    }
    fn read(&mut self) -> usize {
        self.0.load().0
    }
    fn replace(&mut self) {
        self.0.store(Arc::new(Object(7)));
    }
}

struct ArcSwapFull(arc_swap::ArcSwap<Object>);

impl Protect for ArcSwapFull {
    const NAME: &'static str = "arc-swap, load_full()";
    fn new() -> Self {
        ArcSwapFull(arc_swap::ArcSwap::from_pointee(Object(7)))
    }
    fn read(&mut self) -> usize {
        self.0.load_full().0
    }
    fn replace(&mut self) {
        self.0.store(Arc::new(Object(7)));
    }
}

struct HaphazardNew(haphazard::AtomicPtr<Object>);

impl Protect for HaphazardNew {
    const NAME: &'static str = "haphazard, new HazardPointer";
    fn new() -> Self {
        HaphazardNew(haphazard::AtomicPtr::from(Box::new(Object(7))))
    }
    fn read(&mut self) -> usize {
        let mut hazard = HazardPointer::new();
        self.0.safe_load(&mut hazard).map_or(0, |object| object.0)
    }
    fn replace(&mut self) {
        let old = self.0.swap(Box::new(Object(7)));
        if let Some(old) = old {
            // SAFETY: no longer reachable, retired once.
            unsafe { old.retire() };
        }
    }
}

struct HaphazardKept {
    object: haphazard::AtomicPtr<Object>,
    hazard: HazardPointer<'static>,
}

impl Protect for HaphazardKept {
    const NAME: &'static str = "haphazard, kept HazardPointer";
    fn new() -> Self {
        HaphazardKept { object: haphazard::AtomicPtr::from(Box::new(Object(7))), hazard: HazardPointer::new() }
    }
    fn read(&mut self) -> usize {
        let value = self.object.safe_load(&mut self.hazard).map_or(0, |object| object.0);
        self.hazard.reset_protection();
        value
    }
    fn replace(&mut self) {
        let old = self.object.swap(Box::new(Object(7)));
        if let Some(old) = old {
            // SAFETY: no longer reachable, retired once.
            unsafe { old.retire() };
        }
    }
}

struct HazptrNew(hazptr::Atomic<Object, U0>);

impl Protect for HazptrNew {
    const NAME: &'static str = "hazptr, new Guard";
    fn new() -> Self {
        HazptrNew(hazptr::Atomic::new(Object(7)))
    }
    fn read(&mut self) -> usize {
        let mut guard = hazptr::Guard::new();
        self.0.load(Acquire, &mut guard).map_or(0, |object| object.0)
    }
    fn replace(&mut self) {
        let old = self.0.swap(hazptr::Owned::new(Object(7)), AcqRel);
        if let Some(old) = old {
            // SAFETY: no longer reachable, retired once.
            unsafe { old.retire() };
        }
    }
}

struct HazptrKept {
    object: hazptr::Atomic<Object, U0>,
    guard: hazptr::Guard,
}

impl Protect for HazptrKept {
    const NAME: &'static str = "hazptr, kept Guard";
    fn new() -> Self {
        HazptrKept { object: hazptr::Atomic::new(Object(7)), guard: hazptr::Guard::new() }
    }
    fn read(&mut self) -> usize {
        self.object.load(Acquire, &mut self.guard).map_or(0, |object| object.0)
    }
    fn replace(&mut self) {
        let old = self.object.swap(hazptr::Owned::new(Object(7)), AcqRel);
        if let Some(old) = old {
            // SAFETY: no longer reachable, retired once.
            unsafe { old.retire() };
        }
    }
}

fn row<P: Protect>(group: &mut BenchmarkGroup<'_, WallTime>, operation: fn(&mut P)) {
    group.bench_function(P::NAME, |bencher| {
        let mut scheme = P::new();
        bencher.iter(|| operation(&mut scheme));
    });
}

fn all(criterion: &mut Criterion) {
    thread_local! {
        static SINK: Cell<usize> = const { Cell::new(0) };
    }
    fn reading<P: Protect>(scheme: &mut P) {
        SINK.set(black_box(black_box(scheme).read()));
    }
    macro_rules! rows {
        ($name:literal, $operation:expr) => {
            let mut group = criterion.benchmark_group($name);
            row::<Bare>(&mut group, $operation);
            row::<BorrowSlot>(&mut group, $operation);
            row::<Textbook>(&mut group, $operation);
            row::<Counted>(&mut group, $operation);
            row::<EpochPin>(&mut group, $operation);
            row::<EpochHandle>(&mut group, $operation);
            row::<ArcSwapLoad>(&mut group, $operation);
            row::<ArcSwapFull>(&mut group, $operation);
            row::<HaphazardNew>(&mut group, $operation);
            row::<HaphazardKept>(&mut group, $operation);
            row::<HazptrNew>(&mut group, $operation);
            row::<HazptrKept>(&mut group, $operation);
            group.finish();
        };
    }
    rows!("read", reading);
    rows!("replace", |scheme| scheme.replace());
}

criterion_group!(benches, all);
criterion_main!(benches);

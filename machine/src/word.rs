//! [`Sim`]: the machine's memory, as the strategies see it.
//!
//! A handle of zero size; the machine is found through a thread local. A word is a cell in the arena. Inside a running
//! execution each operation is a step of the machine; outside (set-up, inspection) it acts on the cell directly.

use core::cell::Cell;
use core::hash::Hash;
use core::marker::PhantomData;
use core::panic::Location;

use lazytlb_core::memory::{At, AtomicInt, AtomicWord, Label, LocalWord, Memory, Ordering};

use crate::machine::{Machine, with_running};
use crate::step::{Order, Rmw};
use crate::watchpoint;

/// The memory of the machine that runs on this thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sim;

/// A simulated shared word.
#[derive(Debug)]
#[repr(transparent)]
pub struct SimWord<T> {
    cell: Cell<usize>,
    _holds: PhantomData<T>,
}

/// A simulated word of one CPU or task.
#[derive(Debug)]
#[repr(transparent)]
pub struct SimLocal<T> {
    word: SimWord<T>,
}

/// What a word can hold.
pub trait Bits: Copy {
    /// As a number.
    fn to_bits(self) -> usize;
    /// From a number that [`to_bits`](Self::to_bits) made.
    fn from_bits(bits: usize) -> Self;
}

impl Bits for usize {
    #[inline]
    fn to_bits(self) -> usize {
        self
    }
    #[inline]
    fn from_bits(bits: usize) -> usize {
        bits
    }
}

/// Natively a byte; here a word like all others.
impl Bits for u8 {
    #[inline]
    fn to_bits(self) -> usize {
        self.into()
    }
    #[inline]
    fn from_bits(bits: usize) -> u8 {
        bits as u8
    }
}

impl<T> Bits for *mut T {
    #[inline]
    fn to_bits(self) -> usize {
        self.expose_provenance()
    }
    #[inline]
    fn from_bits(bits: usize) -> *mut T {
        core::ptr::with_exposed_provenance_mut(bits)
    }
}

impl<T: Bits> SimWord<T> {
    fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Reads the word without a step, from memory, past the store buffers: for whoever watches from outside.
    pub fn peek(&self) -> T {
        T::from_bits(self.cell.get())
    }

    /// Writes the word without a step: for the model's own books, and for what the program cannot see happen.
    ///
    /// # Panics
    /// If the word is not in the arena of the machine that runs.
    pub fn poke(&self, value: T) {
        match with_running(|machine| machine.poke(self.address(), value.to_bits())) {
            Some(()) => {}
            None => self.cell.set(value.to_bits()),
        }
    }

    /// Reads the word where no execution runs.
    fn outside(&self) -> usize {
        watchpoint::note_look(self.address());
        self.cell.get()
    }

    #[inline]
    #[track_caller]
    fn rmw(&self, rmw: Rmw, order: Order, apply: impl Fn(usize) -> Option<usize>) -> usize {
        let at = Location::caller();
        with_running(|machine| machine.rmw(self.address(), rmw, order, at, &apply)).unwrap_or_else(|| {
            let old = self.cell.get();
            if let Some(new) = apply(old) {
                self.cell.set(new);
            }
            old
        })
    }

    #[inline]
    #[track_caller]
    fn cas(&self, current: T, new: T, order: Order) -> Result<T, T> {
        let (current, new) = (current.to_bits(), new.to_bits());
        let old = self.rmw(Rmw::CompareExchange, order, |old| (old == current).then_some(new));
        if old == current { Ok(T::from_bits(old)) } else { Err(T::from_bits(old)) }
    }
}

impl<T: Bits> AtomicWord<T> for SimWord<T> {
    fn new(value: T) -> Self {
        SimWord { cell: Cell::new(value.to_bits()), _holds: PhantomData }
    }

    #[inline]
    fn load(&self, at: impl Into<At>) -> T {
        let caller = Location::caller();
        let bits = with_running(|machine| machine.load(self.address(), Order::of(at), caller));
        T::from_bits(bits.unwrap_or_else(|| self.outside()))
    }

    #[inline]
    fn store(&self, value: T, at: impl Into<At>) {
        let caller = Location::caller();
        let bits = value.to_bits();
        if with_running(|machine| machine.store(self.address(), bits, Order::of(at), caller)).is_none() {
            self.cell.set(bits);
        }
    }

    #[inline]
    fn swap(&self, value: T, at: impl Into<At>) -> T {
        let bits = value.to_bits();
        T::from_bits(self.rmw(Rmw::Swap, Order::of(at), |_| Some(bits)))
    }

    #[inline]
    fn compare_exchange(&self, current: T, new: T, at: impl Into<At>, failure: Ordering) -> Result<T, T> {
        self.cas(current, new, Order { failure, ..Order::of(at) })
    }

    #[inline]
    fn swap_full(&self, value: T, label: Label) -> T {
        let bits = value.to_bits();
        T::from_bits(self.rmw(Rmw::Swap, Order::full(label), |_| Some(bits)))
    }

    #[inline]
    fn compare_exchange_full(&self, current: T, new: T, label: Label) -> Result<T, T> {
        self.cas(current, new, Order::full(label))
    }
}

macro_rules! fetch {
    ($($plain:ident $full:ident $apply:expr),*) => {
        impl AtomicInt for SimWord<usize> {
            $(
                #[inline]
                fn $plain(&self, value: usize, at: impl Into<At>) -> usize {
                    let apply: fn(usize, usize) -> usize = $apply;
                    self.rmw(Rmw::Fetch, Order::of(at), |old| Some(apply(old, value)))
                }
                #[inline]
                fn $full(&self, value: usize, label: Label) -> usize {
                    let apply: fn(usize, usize) -> usize = $apply;
                    self.rmw(Rmw::Fetch, Order::full(label), |old| Some(apply(old, value)))
                }
            )*
        }
    };
}

fetch!(
    fetch_add fetch_add_full usize::wrapping_add,
    fetch_sub fetch_sub_full usize::wrapping_sub,
    fetch_or fetch_or_full |old, value| old | value,
    fetch_and fetch_and_full |old, value| old & value
);

impl<T: Bits> SimLocal<T> {
    /// As [`SimWord::peek`].
    pub fn peek(&self) -> T {
        self.word.peek()
    }

    /// The word itself.
    pub fn word(&self) -> &SimWord<T> {
        &self.word
    }

    /// As [`SimWord::poke`].
    pub fn poke(&self, value: T) {
        self.word.poke(value);
    }
}

impl<T: Bits> LocalWord<T> for SimLocal<T> {
    fn new(value: T) -> Self {
        SimLocal { word: AtomicWord::new(value) }
    }

    #[inline]
    fn get(&self) -> T {
        let caller = Location::caller();
        let bits = with_running(|machine| machine.load(self.word.address(), Order::LOCAL, caller));
        T::from_bits(bits.unwrap_or_else(|| self.word.outside()))
    }

    #[inline]
    fn set(&self, value: T) {
        let caller = Location::caller();
        let bits = value.to_bits();
        if with_running(|machine| machine.store(self.word.address(), bits, Order::LOCAL, caller)).is_none() {
            self.word.cell.set(bits);
        }
    }
}

impl Memory for Sim {
    type AtomicUsize = SimWord<usize>;
    type AtomicPtr<T> = SimWord<*mut T>;
    type LocalUsize = SimLocal<usize>;
    type LocalPtr<T> = SimLocal<*mut T>;

    #[inline]
    fn fence(self, at: impl Into<At>) {
        let at = at.into();
        with_running(|machine| machine.fence(at));
    }

    fn spin_hint(self) {
        with_running(|machine| machine.spin_hint());
    }

    fn outcome_of<R: Hash>(self, f: impl FnOnce() -> R) -> R {
        let before = with_running(Machine::ask);
        let outcome = f();
        if let Some(before) = before {
            with_running(|machine| machine.answer(before, &outcome));
        }
        outcome
    }

    fn spin_until<R>(self, mut ready: impl FnMut() -> Option<R>) -> R {
        loop {
            let mut value = None;
            let done = with_running(|machine| {
                machine.begin_round();
                value = ready();
                machine.end_round(value.is_some());
            });
            match (done, value) {
                (_, Some(value)) => return value,
                (Some(()), None) => {}
                // Nobody else runs during set-up: what is not ready now never will be.
                (None, None) => match ready() {
                    Some(value) => return value,
                    None => panic!("a wait outside an execution would never end"),
                },
            }
        }
    }
}

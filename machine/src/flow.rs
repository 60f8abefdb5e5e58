//! Who can go on: what each place's next step needs, as bit masks that are kept as places and their interrupts change.
//!
//! It is asked at every choice, so nothing is looked for there.

use crate::machine::Machine;
use crate::state::{Action, Next, Place, State};

/// What decides who can go on, a bit for each place.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Flow {
    /// The next step needs nobody else.
    plain: u32,
    /// It needs the own buffer empty.
    drained: u32,
    /// It needs others to do something first.
    special: u32,
    /// It needs room in the own buffer.
    stores: u32,
    /// The buffer is not empty.
    buffered: u32,
    /// The buffer has no room.
    full: u32,
    /// An interrupt waits.
    pending: u32,
    /// Interrupts are on.
    irqs_on: u32,
    /// A non-maskable interrupt waits, and none is being handled.
    nmis: u32,
    /// A timer may interrupt the task that runs.
    ticks: u32,
    /// Preemption is disabled.
    atomic: u32,
}

impl Flow {
    /// A place is about to start.
    pub(crate) fn boot(&mut self, place: usize, irqs_on: bool) {
        self.plain |= 1 << place;
        self.irqs_on |= u32::from(irqs_on) << place;
    }

    /// Whether a timer may interrupt the task that runs on a place.
    #[inline]
    pub(crate) fn ticks(&self, place: usize) -> bool {
        self.ticks >> place & 1 != 0
    }
}

/// What can happen next: a bit for each place that can do its step, then one for each interrupt, then one for each
/// drain, then one for each non-maskable interrupt or tick of the timer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready(u64);

impl Ready {
    const IRQS: u32 = 16;
    const DRAINS: u32 = 32;
    const NMIS: u32 = 48;

    /// How many things.
    #[inline]
    pub(crate) fn count(self) -> u32 {
        self.0.count_ones()
    }
}

/// The place of the bit that has `index` set bits below it.
#[inline]
fn nth_bit(mut bits: u64, index: u32) -> u32 {
    for _ in 0..index {
        bits &= bits - 1;
    }
    bits.trailing_zeros()
}

impl State {
    /// Counts how often preemption is disabled on the running CPU.
    pub(crate) fn add_preempt_count(&mut self, by: i32) {
        let place = &mut self.places[self.running];
        place.preempt_count = place.preempt_count.wrapping_add_signed(by);
        let atomic = place.preempt_count > 0;
        self.flow.atomic = self.flow.atomic & !(1 << self.running) | u32::from(atomic) << self.running;
    }

    /// Turns the timer of the running CPU on or off.
    pub(crate) fn tick(&mut self, on: bool) {
        self.flow.ticks = self.flow.ticks & !(1 << self.running) | u32::from(on) << self.running;
    }

    /// Says what the running place is about to do.
    #[inline]
    pub(crate) fn announce(&mut self, next: Next) {
        let me = self.running;
        self.places[me].next = next;
        let bit = 1 << me;
        let set = |mask: &mut u32, on: bool| *mask = *mask & !bit | u32::from(on) << me;
        set(&mut self.flow.plain, !matches!(next, Next::Wait | Next::Idle | Next::Stop));
        set(&mut self.flow.drained, matches!(next, Next::Fence | Next::Rmw { .. } | Next::Ipi | Next::Heap));
        set(&mut self.flow.stores, matches!(next, Next::Store { local: false, .. }));
        set(&mut self.flow.special, matches!(next, Next::Wait | Next::Stop));
    }

    /// Turns the interrupts of the running CPU on or off; says what they were.
    #[inline]
    pub(crate) fn set_irqs(&mut self, on: bool) -> bool {
        self.flow.irqs_on = self.flow.irqs_on & !(1 << self.running) | u32::from(on) << self.running;
        core::mem::replace(&mut self.me().irqs_on, on)
    }

    /// Whether a CPU's buffer has no room for another store.
    #[inline]
    pub(crate) fn buffer_is_full(&self, place: usize) -> bool {
        self.flow.full & 1 << place != 0
    }

    /// An interrupt waits to be delivered.
    pub(crate) fn post(&mut self, place: usize, vector: u8) {
        self.places[place].pending |= 1 << vector;
        self.flow.pending |= 1 << place;
    }

    /// A non-maskable interrupt waits to be delivered.
    pub(crate) fn post_nmi(&mut self, place: usize, vector: u8) {
        self.places[place].pending_nmis |= 1 << vector;
        self.flow.nmis |= u32::from(!self.places[place].in_nmi) << place;
    }

    /// The running CPU takes a non-maskable interrupt; until it is handled no other is taken.
    pub(crate) fn enter_nmi(&mut self, vector: u8) {
        let me = self.running;
        self.places[me].pending_nmis &= !(1 << vector);
        self.places[me].in_nmi = true;
        self.flow.nmis &= !(1 << me);
    }

    /// It is handled.
    pub(crate) fn leave_nmi(&mut self) {
        let me = self.running;
        self.places[me].in_nmi = false;
        self.flow.nmis |= u32::from(self.places[me].pending_nmis != 0) << me;
    }

    /// The running CPU takes an interrupt.
    pub(crate) fn take(&mut self, vector: u8) {
        let me = self.running;
        let pending = &mut self.places[me].pending;
        *pending &= !(1 << vector);
        if *pending == 0 {
            self.flow.pending &= !(1 << me);
        }
    }

    /// A store enters the running CPU's buffer.
    #[inline]
    pub(crate) fn buffer(&mut self, word: usize, value: u64, room: usize) {
        self.flow.buffered |= 1 << self.running;
        self.me().buffer.push_back((word, value));
        self.flow.full |= u32::from(self.me().buffer.len() >= room) << self.running;
    }

    /// A CPU's oldest store leaves its buffer.
    #[inline]
    pub(crate) fn unbuffer(&mut self, place: usize) -> Option<(usize, u64)> {
        let store = self.places[place].buffer.pop_front();
        self.flow.full &= !(1 << place);
        if self.places[place].buffer.is_empty() {
            self.flow.buffered &= !(1 << place);
        }
        store
    }

    /// Whether a place that waits for others can go on now.
    fn can_go_on(&self, id: usize) -> bool {
        let place = &self.places[id];
        match place.next {
            Next::Wait => self.tasks[place.task].wait.dirty,
            Next::Stop => place.buffer.is_empty() && self.others_can_be_stopped(id),
            _ => false,
        }
    }

    fn others_can_be_stopped(&self, me: usize) -> bool {
        let stoppable = |place: &Place| {
            place.agent || (place.irqs_on && !place.in_handler() && place.preempt_count == 0 && place.in_softirq == 0)
        };
        self.places.iter().enumerate().all(|(id, place)| id == me || stoppable(place))
    }

    /// All that can happen now.
    #[inline]
    pub(crate) fn ready(&self) -> Ready {
        let Flow { plain, drained, stores, mut special, buffered, full, pending, irqs_on, nmis, ticks, atomic } =
            self.flow;
        let mut steps = plain & !(drained & buffered) & !(stores & full);
        while special != 0 {
            let id = special.trailing_zeros();
            steps |= u32::from(self.can_go_on(id as usize)) << id;
            special &= special - 1;
        }
        // An interrupt finds the buffer drained: its entry is a barrier.
        let irqs = pending & irqs_on & !buffered;
        let nmis = (nmis | ticks & irqs_on & !atomic) & !buffered;
        Ready(
            u64::from(steps)
                | u64::from(irqs) << Ready::IRQS
                | u64::from(buffered) << Ready::DRAINS
                | u64::from(nmis) << Ready::NMIS,
        )
    }

    /// One of them, by its number.
    #[inline]
    pub(crate) fn action(&self, ready: Ready, index: u32) -> Action {
        let bit = nth_bit(ready.0, index);
        match bit {
            0..Ready::IRQS => Action::Step(bit as u8),
            Ready::IRQS..Ready::DRAINS => {
                let place = bit - Ready::IRQS;
                // The lowest vector comes first.
                Action::Irq(place as u8, self.places[place as usize].pending.trailing_zeros() as u8)
            }
            Ready::DRAINS..Ready::NMIS => Action::Drain((bit - Ready::DRAINS) as u8),
            _ => {
                let place = bit - Ready::NMIS;
                if self.flow.nmis & 1 << place == 0 {
                    return Action::Irq(place as u8, Machine::TICK);
                }
                Action::Nmi(place as u8, self.places[place as usize].pending_nmis.trailing_zeros() as u8)
            }
        }
    }

    /// All of them as a list, a step of the place that runs first.
    pub(crate) fn actions(&self, out: &mut Vec<Action>) {
        let ready = self.ready();
        out.clear();
        out.extend((0..ready.count()).map(|index| self.action(ready, index)));
        let steps = out.iter().take_while(|action| matches!(action, Action::Step(_))).count();
        let before = out[..steps].iter().take_while(|&&action| action < Action::Step(self.running as u8)).count();
        out[..steps].rotate_left(before);
    }
}

//! Scripts of `lazytlb lazy-mmu`: one call a line.

use core::ops::Range;

use lazytlb_toy_mmu::TABLE;

use crate::bad_input::BadInput;

/// A call of a script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Call {
    Enable,
    EnableWithPtes(Range<usize>),
    Disable,
    Pause,
    Resume,
    IrqEnter,
    IrqExit,
    Switch,
    Set { addr: usize, value: usize },
    Get { addr: usize },
    Flush,
}

impl Call {
    /// As it is written, without its numbers.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Call::Enable => "enable",
            Call::EnableWithPtes(_) => "enable-with-ptes",
            Call::Disable => "disable",
            Call::Pause => "pause",
            Call::Resume => "resume",
            Call::IrqEnter => "irq-enter",
            Call::IrqExit => "irq-exit",
            Call::Switch => "switch",
            Call::Set { .. } => "set",
            Call::Get { .. } => "get",
            Call::Flush => "flush",
        }
    }
}

/// A line that has a call.
pub(super) struct Line {
    /// From 1.
    pub(super) number: usize,
    /// Where the call begins, from 1.
    pub(super) column: usize,
    /// The whole line.
    pub(super) text: String,
    pub(super) call: Call,
}

impl Line {
    /// The call as it is written.
    pub(super) fn written(&self) -> String {
        words(&self.text).map(|word| word.1).collect::<Vec<_>>().join(" ")
    }
}

/// A word, and the column of its first character, from 1.
type Word<'a> = (usize, &'a str);

/// What is wrong in a line, and where.
struct Wrong {
    column: usize,
    message: String,
}

impl Wrong {
    fn at(word: Word<'_>, message: impl Into<String>) -> Wrong {
        Wrong { column: word.0, message: message.into() }
    }
}

/// The calls of a script; `file` is its name in errors.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Vec<Line>, BadInput> {
    let mut lines = Vec::new();
    let mut interrupts = 0_u32;
    for (index, bytes) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let number = index + 1;
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches('\r');
        let call = call(text).and_then(|call| {
            check(call.as_ref(), &mut interrupts)?;
            Ok(call)
        });
        match call {
            Ok(None) => {}
            Ok(Some((word, call))) => lines.push(Line { number, column: word.0, text: text.to_owned(), call }),
            Err(Wrong { column, message }) => return Err(BadInput::at(file, number, column, &message, text)),
        }
    }
    Ok(lines)
}

/// What stands before a `#`.
pub(super) fn words(line: &str) -> impl Iterator<Item = Word<'_>> {
    let line = line.split('#').next().unwrap_or_default();
    let column = |word: &str| 1 + line[..word.as_ptr().addr() - line.as_ptr().addr()].chars().count();
    line.split_whitespace().map(move |word| (column(word), word))
}

/// The call of a line, with its word, if there is one.
fn call(line: &str) -> Result<Option<(Word<'_>, Call)>, Wrong> {
    let mut words = words(line);
    let Some(name) = words.next() else { return Ok(None) };
    let mut number = |what: &str| {
        let word = words.next().ok_or_else(|| Wrong::at(name, format!("{} wants {what}", name.1)))?;
        parse_number(word.1).ok_or_else(|| {
            Wrong::at(word, format!("expected {what}, a number of 64 bits, decimal or behind 0x; found `{}`", word.1))
        })
    };
    let call = match name.1 {
        "enable" => Call::Enable,
        "enable-with-ptes" => {
            Call::EnableWithPtes(number("the first address")?..number("the address behind the last")?)
        }
        "disable" => Call::Disable,
        "pause" => Call::Pause,
        "resume" => Call::Resume,
        "irq-enter" => Call::IrqEnter,
        "irq-exit" => Call::IrqExit,
        "switch" => Call::Switch,
        "set" => Call::Set { addr: number("an address")?, value: number("a value")? },
        "get" => Call::Get { addr: number("an address")? },
        "flush" => Call::Flush,
        other => {
            return Err(Wrong::at(
                name,
                format!(
                    "there is no call `{other}`; there are: enable, enable-with-ptes, disable, pause, resume, irq-enter, irq-exit, switch, set, get, flush"
                ),
            ));
        }
    };
    if let Call::EnableWithPtes(range) = &call {
        if range.is_empty() {
            return Err(Wrong::at(name, "the range is empty: its end must lie behind its beginning"));
        }
        if range.start / TABLE != (range.end - 1) / TABLE {
            return Err(Wrong::at(name, format!("not all of these entries are in one table of {TABLE}")));
        }
    }
    match words.next() {
        Some(word) => Err(Wrong::at(word, format!("nothing is expected here; found `{}`", word.1))),
        None => Ok(Some((name, call))),
    }
}

fn parse_number(text: &str) -> Option<usize> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if digits.starts_with('+') => None,
        Some(digits) => usize::from_str_radix(digits, 16).ok(),
        None if text.starts_with('+') => None,
        None => text.parse().ok(),
    }
}

/// Interrupts begin before they end, and no task is switched in one.
fn check(call: Option<&(Word<'_>, Call)>, interrupts: &mut u32) -> Result<(), Wrong> {
    let Some((word, call)) = call else { return Ok(()) };
    match call {
        Call::IrqEnter => *interrupts += 1,
        Call::IrqExit if *interrupts == 0 => return Err(Wrong::at(*word, "there is no interrupt that could end")),
        Call::IrqExit => *interrupts -= 1,
        Call::Switch if *interrupts > 0 => {
            return Err(Wrong::at(*word, "no task is switched in an interrupt"));
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(text: &str) -> Vec<Call> {
        parse("t", text.as_bytes())
            .unwrap_or_else(|error| panic!("{error}"))
            .into_iter()
            .map(|line| line.call)
            .collect()
    }

    fn error(text: &str) -> String {
        parse("t", text.as_bytes()).err().expect("a bad script").to_string()
    }

    #[test]
    fn calls_are_read_with_their_numbers() {
        assert_eq!(calls("# nothing\n\n"), []);
        assert_eq!(calls("  enable # why\r\nset 0x10 7"), [Call::Enable, Call::Set { addr: 16, value: 7 }]);
        assert_eq!(calls("enable-with-ptes 0x100 512"), [Call::EnableWithPtes(256..512)]);
        assert_eq!(calls("get 0xffffffffffffffff"), [Call::Get { addr: usize::MAX }]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let starts = |text: &str, start: &str| {
            let error = error(text);
            assert!(error.starts_with(&format!("error: t:{start}")), "{error}");
        };
        starts("enable\n  enabel", "2:3: there is no call `enabel`");
        starts("set 1", "1:1: set wants a value");
        starts("set 1 -2", "1:7: expected a value");
        starts("set 1 0x10000000000000000", "1:7: expected a value");
        starts("get +1", "1:5: expected an address");
        starts("get 0x+1", "1:5: expected an address");
        starts("enable 1", "1:8: nothing is expected here");
        starts("enable-with-ptes 2 2", "1:1: the range is empty");
        starts("enable-with-ptes 255 257", "1:1: not all of these entries are in one table");
        starts("irq-exit", "1:1: there is no interrupt");
        starts("irq-enter\nirq-enter\nirq-exit\nswitch", "4:1: no task is switched");
        starts("gét \u{fffd}", "1:1: there is no call");
    }
}

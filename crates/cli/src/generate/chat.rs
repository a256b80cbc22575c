//! A conversation in the terminal.

use std::io::{BufRead, IsTerminal as _};

use breakers_core::{FinishReason, Message, chain};
use breakers_tokenizer::ChatTemplate;

use super::opening;
use super::session::Session;
use crate::{Error, LoadedModel, Result};

const HELP: &str = "\"\"\" begins and ends several lines, /reset begins anew, /exit (or end of input) ends; \
    Ctrl-C ends an answer";

/// Reads messages and answers them until the input ends. Without a template each message is continued as a
/// plain text. A message that cannot be answered is reported and dropped, and the conversation goes on
/// without it.
pub(super) fn run(
    loaded: &LoadedModel,
    mut session: Session<'_>,
    system: Option<&str>,
    template: Option<&ChatTemplate>,
) -> Result {
    let kind = if template.is_some() { "chat" } else { "continues each line, without memory" };
    eprintln!("{} ({kind}); {HELP}", loaded.name);
    let mut messages: Vec<Message> = Vec::new();
    let interactive = std::io::stdin().is_terminal();
    loop {
        if interactive {
            eprint!("> ");
        }
        let text = match read_message(&mut std::io::stdin().lock(), interactive)? {
            Input::End => return Ok(()),
            Input::NotUtf8 => {
                eprintln!("[this is not UTF-8; left out]");
                continue;
            }
            Input::Message(text) => text,
        };
        match text.trim() {
            "" => continue,
            "/exit" | "/bye" => return Ok(()),
            "/help" => {
                eprintln!("{HELP}");
                continue;
            }
            "/reset" | "/clear" => {
                messages.clear();
                continue;
            }
            _ => {}
        }
        let result = match template {
            Some(template) => turn(&mut session, template, system, &mut messages, &text),
            None => session.continue_text(&text),
        };
        match result {
            Ok(()) => {}
            Err(Error::Failed(error)) => {
                eprintln!("[{}; the message is left out]", chain(&*error, ": "));
            }
            // Nobody reads the answers anymore.
            Err(other) => return Err(other),
        }
    }
}

/// Answers a message. On failure the conversation is unchanged.
fn turn(
    session: &mut Session<'_>,
    template: &ChatTemplate,
    system: Option<&str>,
    messages: &mut Vec<Message>,
    text: &str,
) -> Result {
    let mut longer = messages.clone();
    match longer.is_empty() {
        true => longer = opening(system, text),
        false => longer.push(Message::new("user", text)),
    }
    let mut answer = session.answer(template, &longer)?;
    if answer.is_none() && !messages.is_empty() {
        eprintln!("[the conversation no longer fits into the context; it begins anew with this message]");
        longer = opening(system, text);
        answer = session.answer(template, &longer)?;
    }
    // Functions are the user's to run.
    while let Some(reply) = answer.take_if(|reply| reply.finish == FinishReason::ToolCalls) {
        longer.push(reply.message());
        for call in &reply.tool_calls {
            eprint!("[result of {}] ", call.name);
            match read_message(&mut std::io::stdin().lock(), true)? {
                Input::Message(text) => longer.push(Message::tool(&call.id, text)),
                Input::NotUtf8 => longer.push(Message::tool(&call.id, "error: the result is not UTF-8")),
                Input::End => return Ok(()),
            }
        }
        answer = session.answer(template, &longer)?;
    }
    match answer {
        Some(reply) => {
            longer.push(reply.message());
            *messages = longer;
        }
        None => eprintln!("[the message alone is longer than the context; it is left out]"),
    }
    Ok(())
}

/// The next input.
#[derive(Debug, PartialEq, Eq)]
enum Input {
    Message(String),
    NotUtf8,
    End,
}

/// Reads a line, or several between two `"""`.
fn read_message(input: &mut impl BufRead, interactive: bool) -> std::io::Result<Input> {
    const QUOTES: &str = "\"\"\"";
    let mut text = match read_line(input)? {
        Input::Message(text) => text,
        other => return Ok(other),
    };
    let Some(opened) = text.strip_prefix(QUOTES) else { return Ok(Input::Message(text)) };
    text = opened.to_owned();
    let mut is_utf8 = true;
    loop {
        if let Some(closed) = text.strip_suffix(QUOTES) {
            text.truncate(closed.len());
            break;
        }
        if interactive {
            eprint!("... ");
        }
        match read_line(input)? {
            Input::Message(line) => {
                text.push('\n');
                text.push_str(&line);
            }
            Input::NotUtf8 => is_utf8 = false,
            Input::End => break,
        }
    }
    Ok(if is_utf8 { Input::Message(text.trim_matches('\n').to_owned()) } else { Input::NotUtf8 })
}

/// Reads a line, without its line end.
fn read_line(input: &mut impl BufRead) -> std::io::Result<Input> {
    let mut line = Vec::new();
    if input.read_until(b'\n', &mut line)? == 0 {
        return Ok(Input::End);
    }
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    Ok(String::from_utf8(line).map_or(Input::NotUtf8, Input::Message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lines_or_stand_between_quotes() {
        let mut input: &[u8] =
            b"one\r\n\xff\xfe\n\"\"\"two\nthree\"\"\"\n\"\"\"\nfour\n\n five\n\"\"\"\n\"\"\"six\"\"\"\n\"\"\"a\n\xff\n\"\"\"\nlast";
        let mut found = Vec::new();
        loop {
            match read_message(&mut input, false).unwrap() {
                Input::End => break,
                Input::NotUtf8 => found.push("?".to_owned()),
                Input::Message(text) => found.push(text),
            }
        }
        assert_eq!(found, ["one", "?", "two\nthree", "four\n\n five", "six", "?", "last"]);
    }
}

//! `breakers chat`: conversations that bad input and Ctrl-C do not end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};

use super::{program, small_model};

/// A running conversation.
struct Chat {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    notes: BufReader<ChildStderr>,
    /// What was printed before the conversation began.
    preamble: String,
}

impl Chat {
    fn begin(model: &str, arguments: &[&str]) -> Self {
        let mut command = program();
        command.args(["chat", model]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = child.stdout.take().unwrap();
        let notes = BufReader::new(child.stderr.take().unwrap());
        let mut chat = Self { child, input, output, notes, preamble: String::new() };
        loop {
            let note = chat.note();
            assert!(!note.is_empty(), "{}", chat.preamble);
            chat.preamble += &note;
            if note.contains("Ctrl-C ends an answer") {
                return chat;
            }
        }
    }

    fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.input.write_all(bytes.as_ref()).unwrap();
    }

    /// The next line on standard error; empty at the end.
    fn note(&mut self) -> String {
        let mut line = String::new();
        self.notes.read_line(&mut line).unwrap();
        line
    }

    /// Waits for the first piece of an answer.
    #[cfg(unix)]
    fn answers(&mut self) {
        let mut piece = [0];
        assert_eq!(self.output.read(&mut piece).unwrap(), 1, "{}", self.note());
    }

    /// Reads what is left of an answer that has ended.
    #[cfg(unix)]
    fn skip_answer(&mut self) {
        let mut rest = vec![0; 1 << 16];
        loop {
            let n = self.output.read(&mut rest).unwrap();
            if n == 0 || rest[..n].ends_with(b"\n") {
                return;
            }
        }
    }

    #[cfg(unix)]
    fn press_ctrl_c(&self) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    }

    /// Ends the input, and returns the exit code and the rest of the answers and notes.
    fn end(mut self) -> (Option<i32>, String, String) {
        drop(self.input);
        let (mut answers, mut notes) = (String::new(), self.preamble);
        self.output.read_to_string(&mut answers).unwrap();
        self.notes.read_to_string(&mut notes).unwrap();
        (self.child.wait().unwrap().code(), answers, notes)
    }
}

/// Sends all messages at once, and returns the answers and the notes.
fn converse(model: &str, arguments: &[&str], input: &[u8]) -> (Vec<String>, String) {
    let mut chat = Chat::begin(model, arguments);
    chat.say(input);
    let (code, answers, notes) = chat.end();
    assert_eq!(code, Some(0), "{notes}");
    (answers.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect(), notes)
}

#[test]
fn one_bad_turn_does_not_end_it() {
    let Some(model) = small_model() else { return };
    let long = "word ".repeat(200);
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("not UTF-8", b"\xff\xfe\n".to_vec(), "not UTF-8"),
        ("too long", format!("{long}\n").into_bytes(), "longer than the context"),
        ("an empty line", b"\n  \n".to_vec(), ""),
        ("a Latin-1 line between quotes", b"\"\"\"\na\n\xe9\n\"\"\"\n".to_vec(), "not UTF-8"),
    ];
    for (name, bad, told) in cases {
        let input = [&b"Say hello.\n/reset\n"[..], &bad, b"/reset\nSay hello.\n"].concat();
        let (answers, notes) = converse(&model, &["-n", "6", "--ctx", "100"], &input);
        assert!(notes.contains(told), "{name}: {notes}");
        assert_eq!(answers.len(), 2, "{name}: {answers:?}, {notes}");
        assert_eq!(answers[0], answers[1], "{name}");
    }
}

#[test]
fn a_full_context_begins_anew_with_the_message_that_filled_it() {
    let Some(model) = small_model() else { return };
    let (answers, notes) =
        converse(&model, &["-n", "12", "--ctx", "64"], b"Count to three.\nAgain.\nSay hello.\nSay hello.\n");
    assert!(notes.contains("begins anew with this message"), "{notes}");
    assert!(answers.len() >= 4, "{answers:?}");
}

#[test]
fn several_lines_stand_between_quotes() {
    let Some(model) = small_model() else { return };
    let of = |input: &str| converse(&model, &["-n", "6"], input.as_bytes()).0;
    let one = of("\"\"\"Name a color.\nOne word.\"\"\"\n");
    assert_eq!(one.len(), 1);
    assert_eq!(of("\"\"\"\nName a color.\nOne word.\n\"\"\"\n/exit\nnobody reads this\n"), one);
    assert_eq!(of("Name a color.\nOne word.\n").len(), 2, "two lines are two messages");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_answer_and_then_the_program() {
    let Some(model) = small_model() else { return };
    // No answer ends by itself.
    let begin = || Chat::begin(&model, &["-n", "8000", "--ignore-eos", "-t", "1"]);
    let mut chat = begin();
    for message in ["Tell me a story.\n", "Another one.\n", "And another.\n"] {
        chat.say(message);
        chat.answers();
        chat.press_ctrl_c();
        assert!(chat.note().contains("interrupted"), "{message}");
        // Otherwise the rest of this answer would be taken for the next answer's first piece.
        chat.skip_answer();
    }
    chat.say("/exit\n");
    assert_eq!(chat.end().0, Some(0));

    let mut chat = begin();
    chat.say("Tell me a story.\n");
    chat.answers();
    chat.press_ctrl_c();
    assert!(chat.note().contains("interrupted"));
    chat.press_ctrl_c();
    assert_eq!(chat.child.wait().unwrap().code(), Some(130), "a second one ends the program");

    // Without an answer to end, the first Ctrl-C ends the program.
    let mut chat = begin();
    chat.press_ctrl_c();
    assert_eq!(chat.child.wait().unwrap().code(), Some(130));
}

#[test]
fn flags_hold_in_a_conversation() {
    let Some(model) = small_model() else { return };
    let one = |arguments: &[&str], input: &[u8]| converse(&model, arguments, input).0;
    let plain = one(&["-n", "8"], b"Say hello.\nAgain.\n");
    assert_eq!(
        one(&["-n", "8", "--draft", "ngram", "--cache", "F16", "--device", "cpu"], b"Say hello.\nAgain.\n"),
        plain
    );
    assert_ne!(
        one(&["-n", "8", "--system", "You are a pirate. Answer with arrr."], b"Say hello.\nAgain.\n"),
        plain
    );
    let (_, notes) = converse(&model, &["-n", "3", "--temp", "1", "--seed", "-1"], b"Say hello.\n");
    assert!(notes.contains("[seed "), "{notes}");
    let continued = one(&["-n", "4", "--raw"], b"The capital of France is\n");
    assert!(
        continued[0].starts_with("The capital of France is") && continued[0].contains("Paris"),
        "{continued:?}"
    );
}

#[test]
fn a_turn_that_the_template_refuses_is_left_out() {
    let Some(model) = small_model() else { return };
    let template = "{% for m in messages %}{% if 'raise' in m.content %}{{ raise_exception('not this') }}{% endif %}\
        {% if 'divide' in m.content %}{{ 1 // 0 }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
        {% endfor %}<|im_start|>assistant\n";
    let flags = ["-n", "6", "--chat-template", template];
    let right = converse(&model, &flags, b"Say hello.\nAgain.\n").0;
    for (input, n) in [
        ("raise\nSay hello.\nAgain.\n", 1),
        ("Say hello.\nraise\nAgain.\n", 1),
        ("Say hello.\nAgain.\nraise\n", 1),
        ("divide\nraise\nSay hello.\ndivide\nAgain.\n", 3),
        ("Say hello.\n\"\"\"two lines,\nraise\"\"\"\nAgain.\n", 1),
    ] {
        let (answers, notes) = converse(&model, &flags, input.as_bytes());
        assert_eq!(notes.matches("the message is left out").count(), n, "{input}: {notes}");
        assert_eq!(answers, right, "{input}");
    }
}

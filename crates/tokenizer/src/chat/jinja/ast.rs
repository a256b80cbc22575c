//! A template as a tree.

use std::sync::Arc;

pub(super) type Name = Arc<str>;

/// An expression.
#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Name),
    Name(Name),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Not(Box<Expr>),
    And(Box<(Expr, Expr)>),
    Or(Box<(Expr, Expr)>),
    Binary(Operator, Box<(Expr, Expr)>),
    /// `~`.
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// `yes if test else no`.
    If {
        test: Box<Expr>,
        yes: Box<Expr>,
        no: Option<Box<Expr>>,
    },
    Attribute(Box<Expr>, Name),
    Item(Box<(Expr, Expr)>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Arguments),
    /// Without a value if it is the filter of a filter block.
    Filter(Option<Box<Expr>>, Name, Arguments),
    Test(Box<Expr>, Name, Arguments),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Name, Expr)>,
    /// `*expression`.
    pub(super) star: Option<Box<Expr>>,
    /// `**expression`.
    pub(super) double_star: Option<Box<Expr>>,
}

/// The target of an assignment.
#[derive(Debug)]
pub(super) enum Target {
    Name(Name),
    /// An attribute of a namespace.
    Attribute(Name, Name),
    Tuple(Vec<Target>),
}

/// A statement with its line.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) line: usize,
    pub(super) kind: StatementKind,
}

#[derive(Debug)]
pub(super) enum StatementKind {
    Text(String),
    Print(Expr),
    For(Arc<For>),
    /// Conditions with their bodies, then the `else`.
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    Set(Target, Expr),
    /// A filter expression, if there is one.
    SetBlock(Target, Option<Expr>, Vec<Statement>),
    With(Vec<(Target, Expr)>, Vec<Statement>),
    Macro(Arc<Macro>),
    /// The caller and the expression that is called.
    CallBlock(Arc<Macro>, Expr),
    FilterBlock(Expr, Vec<Statement>),
    /// A block with its own scope.
    Scope(Vec<Statement>),
    /// A block that inheritance could replace. It sees only the top level, unless it is scoped.
    Block {
        body: Vec<Statement>,
        scoped: bool,
    },
    Break,
    Continue,
    /// A statement that needs other templates, which are not supported.
    OtherTemplate(&'static str),
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) items: Expr,
    pub(super) condition: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Vec<Statement>,
    pub(super) otherwise: Vec<Statement>,
}

#[derive(Debug)]
pub(super) struct Macro {
    /// Empty for a caller.
    pub(super) name: Name,
    /// With defaults.
    pub(super) parameters: Vec<(Name, Option<Expr>)>,
    pub(super) body: Vec<Statement>,
    /// Whether the body uses `varargs`, `kwargs` or `caller`; extra arguments are accepted only if it does.
    pub(super) takes: Takes,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Takes {
    pub(super) varargs: bool,
    pub(super) kwargs: bool,
    pub(super) caller: bool,
}

//! WASI that grants nothing.
//!
//! C libraries and the runtimes of other languages import `wasi_snapshot_preview1` as soon as somebody formats a number, and a
//! plugin may import nothing of the kind. Whatever a module imports of it becomes part of the component: functions that
//! answer "there is no such function", and trap where nothing can be answered. So nothing of WASI is left to be imported.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use wasm_encoder::{
    CodeSection, ExportKind, ExportSection, Function, FunctionSection, Instruction, Module, TypeSection, ValType,
};
use wasmparser::{FuncType, Parser, Payload, TypeRef};

/// The module that is imported from.
pub(super) const NAME: &str = "wasi_snapshot_preview1";
/// `nosys` of WASI's `errno`.
const NOSYS: i32 = 52;

/// An adapter with the functions that the module imports; none if it imports none.
pub(super) fn stubs(module: &[u8]) -> Result<Option<Vec<u8>>> {
    let wanted = wanted(module).context("cannot read its imports")?;
    if wanted.is_empty() {
        return Ok(None);
    }
    let (mut types, mut functions) = (TypeSection::new(), FunctionSection::new());
    let (mut exports, mut code) = (ExportSection::new(), CodeSection::new());
    for (index, (name, kind)) in wanted.iter().enumerate() {
        let index = index as u32;
        types.ty().function(values(kind.params())?, values(kind.results())?);
        functions.function(index);
        exports.export(name, ExportKind::Func, index);
        let mut body = Function::new([]);
        body.instruction(&match kind.results() {
            [wasmparser::ValType::I32] => Instruction::I32Const(NOSYS),
            _ => Instruction::Unreachable,
        });
        body.instruction(&Instruction::End);
        code.function(&body);
    }
    let mut stubs = Module::new();
    stubs.section(&types).section(&functions).section(&exports).section(&code);
    Ok(Some(stubs.finish()))
}

/// The functions of WASI that a module imports.
fn wanted(module: &[u8]) -> Result<BTreeMap<String, FuncType>> {
    let (mut types, mut wanted) = (Vec::new(), BTreeMap::new());
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::TypeSection(section) => {
                for kind in section.into_iter_err_on_gc_types() {
                    types.push(kind?);
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    if let (NAME, TypeRef::Func(index)) = (import.module, import.ty) {
                        let kind = types.get(index as usize).context("an import without a type")?;
                        wanted.insert(import.name.to_owned(), kind.clone());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(wanted)
}

fn values(kinds: &[wasmparser::ValType]) -> Result<Vec<ValType>> {
    let value = |kind: &wasmparser::ValType| {
        Ok(match kind {
            wasmparser::ValType::I32 => ValType::I32,
            wasmparser::ValType::I64 => ValType::I64,
            wasmparser::ValType::F32 => ValType::F32,
            wasmparser::ValType::F64 => ValType::F64,
            other => bail!("a function of WASI takes or returns {other}"),
        })
    };
    kinds.iter().map(value).collect()
}

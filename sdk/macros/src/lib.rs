//! The attribute `plugin` of `callgate-sdk`, which documents it.

use std::path::Path;

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Attribute, Error, ImplItem, ImplItemFn, ItemImpl, LitStr, Result, Token, parse2};

/// Makes a component of an implementation of `Plugin`: see `callgate_sdk::plugin`.
#[proc_macro_attribute]
pub fn plugin(arguments: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand(arguments.into(), item.into()).unwrap_or_else(Error::into_compile_error).into()
}

/// The methods for kinds of event, and the kinds (`callgate_sdk::EventKinds`).
const KINDS: [(&str, &str); 9] = [
    ("exec", "EXEC"),
    ("exec_fileless", "EXEC_FILELESS"),
    ("connect", "CONNECT"),
    ("bind", "BIND"),
    ("listen", "LISTEN"),
    ("accept", "ACCEPT"),
    ("send", "SEND"),
    ("socket", "SOCKET"),
    ("credentials", "CREDENTIALS"),
];

/// The method of the trait that only we write.
const WRITTEN: &str = "written_by_attribute";

fn expand(arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let arguments: Arguments = parse2(arguments)?;
    let item: ItemImpl = parse2(item)
        .map_err(|error| Error::new(error.span(), "the attribute belongs on an impl block: `impl Plugin for …`"))?;
    let Some((None, plugin_trait, _)) = &item.trait_ else {
        return Err(Error::new_spanned(&item.self_ty, "the attribute belongs on `impl Plugin for` this type"));
    };
    if plugin_trait.segments.last().is_none_or(|last| last.ident != "Plugin") {
        return Err(Error::new_spanned(plugin_trait, "the attribute is for the trait `callgate_sdk::Plugin`"));
    }
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(&item.generics, "a component is of one type: a plugin cannot be generic"));
    }
    if let Some(method) = method(&item, WRITTEN) {
        return Err(Error::new_spanned(&method.sig.ident, "the attribute writes this method"));
    }

    let kinds = kinds(&item)?;
    let constants = constants(&item);
    let schema = arguments.schema.as_ref().map(|path| schema(&item, path)).transpose()?;
    let (in_trait, beside) = schema.unwrap_or_default();
    let ItemImpl { attrs, self_ty, items, .. } = &item;
    Ok(quote! {
        #(#attrs)*
        impl #plugin_trait for #self_ty {
            #constants
            #kinds
            #in_trait
            #(#items)*
        }
        #beside
        #[cfg(target_arch = "wasm32")]
        ::callgate_sdk::__export!(#self_ty);
    })
}

/// The attribute's arguments.
struct Arguments {
    /// Where the configuration's JSON Schema stands.
    schema: Option<LitStr>,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if input.is_empty() {
            return Ok(Self { schema: None });
        }
        let expected = |span| Error::new(span, "the attribute takes nothing but `schema = \"config.schema.json\"`");
        let key: syn::Ident = input.parse().map_err(|error| expected(error.span()))?;
        if key != "schema" {
            return Err(expected(key.span()));
        }
        input.parse::<Token![=]>().map_err(|error| expected(error.span()))?;
        let path = input.parse().map_err(|error| expected(error.span()))?;
        input.parse::<Option<Token![,]>>()?;
        if input.is_empty() { Ok(Self { schema: Some(path) }) } else { Err(expected(input.span())) }
    }
}

fn methods(item: &ItemImpl) -> impl Iterator<Item = &ImplItemFn> {
    item.items.iter().filter_map(|item| match item {
        ImplItem::Fn(method) => Some(method),
        _ => None,
    })
}

fn method<'a>(item: &'a ItemImpl, name: &str) -> Option<&'a ImplItemFn> {
    methods(item).find(|method| method.sig.ident == name)
}

/// The method that says which kinds of event have one. Those that are compiled under a condition count under it.
fn kinds(item: &ItemImpl) -> Result<TokenStream> {
    let mut written = Vec::new();
    for method in methods(item) {
        if let Some((_, kind)) = KINDS.iter().find(|(name, _)| method.sig.ident == name) {
            let conditions = method.attrs.iter().filter(|attribute: &&Attribute| attribute.path().is_ident("cfg"));
            let kind = syn::Ident::new(kind, method.sig.ident.span());
            written.push(quote! { #(#conditions)* let kinds = kinds | ::callgate_sdk::EventKinds::#kind; });
        }
    }
    if written.is_empty() {
        let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
        let message = format!(
            "a plugin that has no method for any kind of event is never asked: write one of {}",
            names.join(", ")
        );
        return Err(Error::new_spanned(&item.self_ty, message));
    }
    let name = syn::Ident::new(WRITTEN, item.self_ty.span());
    Ok(quote! {
        fn #name() -> ::callgate_sdk::EventKinds {
            let kinds = ::callgate_sdk::EventKinds::empty();
            #(#written)*
            kinds
        }
    })
}

/// Name and version are the crate's, unless they are written.
fn constants(item: &ItemImpl) -> TokenStream {
    [("NAME", "CARGO_PKG_NAME"), ("VERSION", "CARGO_PKG_VERSION")]
        .into_iter()
        .filter(|(name, _)| {
            !item.items.iter().any(|item| matches!(item, ImplItem::Const(constant) if constant.ident == name))
        })
        .map(|(name, variable)| {
            let name = syn::Ident::new(name, item.self_ty.span());
            quote! { const #name: &'static str = ::core::env!(#variable); }
        })
        .collect()
}

/// The component carries the schema's text, which a test keeps current; natively it is made from the type.
fn schema(item: &ItemImpl, path: &LitStr) -> Result<(TokenStream, TokenStream)> {
    if let Some(method) = method(item, "config_schema") {
        let message = "either this method, or the attribute's `schema`";
        return Err(Error::new_spanned(&method.sig.ident, message));
    }
    let config = item.items.iter().find_map(|item| match item {
        ImplItem::Type(it) if it.ident == "Config" => Some(&it.ty),
        _ => None,
    });
    // As it was written, so that this is where the compiler says that it has no schema.
    let Some(config) = config else {
        return Err(Error::new_spanned(&item.self_ty, "`type Config`, which has the schema, is missing"));
    };
    let span = path.span();
    let file = quote! { ::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/", #path) };
    let directory = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let text = if Path::new(&directory).join(path.value()).exists() {
        quote! { ::core::include_str!(#file).to_owned() }
    } else {
        let message = format!("there is no {} yet; `cargo test` writes it", path.value());
        quote_spanned! { span => ::core::compile_error!(#message) }
    };
    let in_trait = quote! {
        fn config_schema() -> ::core::option::Option<::std::string::String> {
            #[cfg(target_arch = "wasm32")]
            let schema = #text;
            #[cfg(not(target_arch = "wasm32"))]
            let schema = ::callgate_sdk::testing::schema::<#config>();
            ::core::option::Option::Some(schema)
        }
    };
    let beside = quote! {
        #[cfg(all(test, not(target_arch = "wasm32")))]
        #[test]
        fn the_schema_is_that_of_the_configuration() {
            ::callgate_sdk::testing::check_schema::<#config>(#file);
        }
    };
    Ok((in_trait, beside))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(arguments: TokenStream, item: TokenStream) -> String {
        expand(arguments, item).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_plugin_is_refused_with_what_was_expected() {
        for (item, part) in [
            (quote! { struct Rule; }, "belongs on an impl block"),
            (quote! { impl Rule { fn exec(&mut self) {} } }, "belongs on `impl Plugin for`"),
            (quote! { impl Default for Rule { fn exec(&mut self) {} } }, "is for the trait"),
            (quote! { impl<T> Plugin for Rule<T> { fn exec(&mut self) {} } }, "cannot be generic"),
            (quote! { impl Plugin for Rule { fn new() {} } }, "write one of exec, exec_fileless, connect"),
            (quote! { impl Plugin for Rule { fn exec() {} fn written_by_attribute() {} } }, "writes this method"),
        ] {
            let refused = refusal(TokenStream::new(), item);
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn arguments_are_refused_unless_they_are_the_schema() {
        let item = quote! { impl Plugin for Rule { fn exec() {} fn config_schema() {} } };
        for arguments in [quote! { name = "x" }, quote! { schema }, quote! { schema = 1 }, quote! { schema = "a" b }] {
            let refused = refusal(arguments, item.clone());
            assert!(refused.contains("takes nothing but `schema ="), "{refused}");
        }
        assert!(refusal(quote! { schema = "a" }, item).contains("either this method"));
    }

    #[test]
    fn only_methods_that_are_written_are_subscribed_to_and_under_their_conditions() {
        let item = quote! { impl Plugin for Rule { #[cfg(feature = "net")] fn connect() {} fn exec() {} } };
        let made = expand(TokenStream::new(), item).unwrap().to_string();
        assert!(made.contains("EventKinds :: EXEC ;"), "{made}");
        assert!(
            made.contains("# [cfg (feature = \"net\")] let kinds = kinds | :: callgate_sdk :: EventKinds :: CONNECT")
        );
        assert!(!made.contains("EventKinds :: SEND"), "{made}");
        assert!(made.contains("CARGO_PKG_NAME") && made.contains("CARGO_PKG_VERSION"), "{made}");
    }
}

use super::*;
use burn::tensor::Tensor;

const LOOSE: Tolerance = Tolerance::new("loose", 0.1, 0.0);

#[test]
fn tolerances_admit_what_they_say() {
    let check = |tolerance: Tolerance, found, expected, admitted| {
        assert_eq!(tolerance.admits(found, expected), admitted, "{found} for {expected}, {tolerance}");
    };
    let tolerance = Tolerance::new("test", 0.5, 0.25);
    check(tolerance, 5.5, 4.0, true);
    check(tolerance, 2.5, 4.0, true);
    check(tolerance, 5.51, 4.0, false);
    check(tolerance, -4.0, 4.0, false);
    check(Tolerance::EXACT, 0.0, -0.0, true);
    check(Tolerance::EXACT, 1.0, 1.0 + f32::EPSILON, false);
    for tolerance in [Tolerance::EXACT, Tolerance::new("all", f32::INFINITY, 0.0)] {
        check(tolerance, f32::NAN, f32::NAN, true);
        check(tolerance, f32::INFINITY, f32::INFINITY, true);
        for (found, expected) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::INFINITY, 1.0)] {
            check(tolerance, found, expected, false);
        }
    }
    check(LOOSE, 1.0, f32::INFINITY, false);
}

#[test]
fn views_hold_the_same_values() {
    let check = |values: Vec<f32>, tensor: &dyn Fn(&mut Inputs) -> Outputs| {
        for view in View::ALL {
            let mut inputs = Inputs::new(3, view, Device::flex());
            assert_eq!(tensor(&mut inputs).0[0].values, values, "{view}");
        }
    };
    let values = |n| Inputs::new(3, View::Whole, Device::flex()).values(n);
    check(values(7), &|inputs| inputs.tensor([7]).into());
    check(values(15), &|inputs| inputs.tensor([3, 5]).into());
    check(values(24), &|inputs| inputs.tensor([2, 3, 4]).into());
    check(values(60), &|inputs| inputs.tensor([1, 5, 3, 4]).into());
    check(values(0), &|inputs| inputs.tensor([2, 0]).into());
    check(vec![2.0, 3.0], &|inputs| inputs.place(vec![2.0, 3.0], [2, 1]).into());
}

/// Compares the identity with an implementation under [`LOOSE`].
fn compare_identity_with(kernel: Implementation<[usize; 2]>) -> Result<Summary> {
    let reference = |shape: &[usize; 2], inputs: &mut Inputs| inputs.tensor(*shape).into();
    let cases = &[[2, 3], [0, 4], [17, 1]];
    Operation {
        name: "identity",
        cases,
        cpu: LOOSE,
        gpu: LOOSE,
        same_bits: true,
        reference: &reference,
        kernel,
    }
    .compare()
}

#[test]
fn an_equal_implementation_passes_in_every_leg() {
    let summary = compare_identity_with(&|shape, inputs| inputs.tensor(*shape).into()).unwrap();
    assert!(summary.legs.len() >= cpu::available().len());
    assert!(summary.legs.iter().all(|(_, largest)| *largest == 0.0));
}

#[test]
fn differences_are_found_and_named() {
    let error = compare_identity_with(&|shape, inputs| (inputs.tensor(*shape) + 0.2).into()).unwrap_err();
    assert!(matches!(error, Error::LegDiffers { output: 0, index: 0, .. }), "{error}");
    assert!(error.to_string().contains("identity on flex with scalar, [2, 3] as whole tensors"), "{error}");

    let transposed = compare_identity_with(&|shape, inputs| inputs.tensor(*shape).swap_dims(0, 1).into());
    let expected = (vec![vec![3, 2]], vec![vec![2, 3]]);
    assert!(
        matches!(transposed, Err(Error::LegShape { found, expected: e, .. }) if (found.clone(), e.clone()) == expected)
    );

    let twice = compare_identity_with(&|shape, inputs| {
        let x = inputs.tensor(*shape);
        Outputs::from(x.clone()).and(x)
    });
    assert!(matches!(twice, Err(Error::LegShape { .. })));
}

#[test]
fn an_instruction_set_with_other_bits_is_found() {
    let by_isa = |shape: &[usize; 2], inputs: &mut Inputs| {
        let error = if cpu::isa() == cpu::Isa::Scalar { 0.0 } else { 0.05 };
        (inputs.tensor(*shape) + error).into()
    };
    let found = compare_identity_with(&by_isa);
    assert_eq!(found.is_err(), cpu::available().len() > 1, "{found:?}");
}

#[test]
fn rows_that_depend_on_their_neighbors_are_found() {
    assert_eq!(compare_rows("identity", &[(5, 3), (0, 4)], |x: Tensor<2>| x), Ok(()));
    let centered = |x: Tensor<2>| x.clone() - x.mean_dim(0);
    assert!(matches!(compare_rows("centered", &[(5, 3)], centered), Err(Error::LegDiffers { .. })));
}

#[test]
fn a_required_device_that_is_missing_is_an_error() {
    assert!(Devices::find_with("").is_ok());
    assert!(Devices::find_with(" flex , flex:0,").is_ok());
    let unknown = Error::UnknownDevice { name: "abacus".to_owned() };
    assert_eq!(Devices::find_with("flex,abacus").err(), Some(unknown));
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_compiled()) {
        assert_eq!(Devices::find_with(kind.name()).err(), Some(Error::DeviceNotCompiled { kind }));
        let devices = Devices::find_with("").unwrap();
        assert!(devices.left_out.iter().any(|reason| reason.contains(kind.name())), "{kind}");
    }
}

package contract_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestValidateSegmentJob(t *testing.T) {
	t.Parallel()
	type M = *attentivev1.SegmentJob
	tests := []struct {
		name string
		edit func(M)
		want string // in the error; valid when empty
	}{
		{"valid", func(M) {}, ""},
		{"no id", func(m M) { m.Id = "" }, "id: "},
		{"id in upper case", func(m M) { m.Id = strings.ToUpper(m.GetId()) }, "id: "},
		{"destination with a dot", func(m M) { m.Destination = "a.b" }, "destination: "},
		{"destination too long", func(m M) { m.Destination = strings.Repeat("a", 33) }, "destination: "},
		{"template", func(m M) { m.Template = "Default" }, "template: "},
		{"no requester", func(m M) { m.Requester = nil }, ""},
		{"requester without policies", func(m M) { m.Requester.Policies = nil }, "requester.policies: "},
		{"policy nobody knows", func(m M) { m.Requester.Policies[0] = 99 }, "requester.policies[0]: must be one of POLICY_DATAGRID_OPERATOR"},
		{"no origin", func(m M) { m.Origin = nil }, "origin: "},
		{"campaign without name", func(m M) { m.GetCampaign().Name = "" }, "campaign.name: "},
		{"no groups", func(m M) { m.Groups = nil }, "groups: "},
		{"too many groups", func(m M) {
			for len(m.Groups) < 257 {
				m.Groups = append(m.Groups, m.Groups[0])
			}
		}, "groups: "},
		{"group without source", func(m M) { m.Groups[1].Source = nil }, "groups[1].source: "},
		{"source without location", func(m M) { m.Groups[1].Source.Location = nil }, "groups[1].source.location: "},
		{"inline of 512 KiB", func(m M) { m.Groups[1].Source.Location.(*attentivev1.Source_Inline).Inline = make([]byte, 512<<10) }, ""},
		{"inline beyond", func(m M) {
			m.Groups[1].Source.Location.(*attentivev1.Source_Inline).Inline = make([]byte, 512<<10+1)
		}, "groups[1].source.inline: "},
		{"no format", func(m M) { m.Groups[0].Source.Format = 0 }, "groups[0].source.format: must be one of FORMAT_CSV, "},
		{"short digest", func(m M) { m.Groups[0].Source.Sha256 = []byte("x") }, "groups[0].source.sha256: must be empty or 32 bytes"},
		{"two delimiters", func(m M) { m.Groups[0].Source.Delimiter = ",;" }, "groups[0].source.delimiter: "},
		{"delimiter of two bytes", func(m M) { m.Groups[0].Source.Delimiter = "§" }, "groups[0].source.delimiter: "},
		{"encoding", func(m M) { m.Groups[0].Source.Encoding = attentivev1.Encoding_ENCODING_WINDOWS_1252 }, ""},
		{"no encoding", func(m M) { m.Groups[0].Source.Encoding = 99 }, "groups[0].source.encoding: must be one of ENCODING_UTF_8, "},
		{"encoding of Parquet", func(m M) {
			m.Groups[0].Source.Format = attentivev1.Format_FORMAT_PARQUET
			m.Groups[0].Source.Encoding = attentivev1.Encoding_ENCODING_UTF_8
		}, "groups[0].source: encoding is of text"},
		{"quote as delimiter", func(m M) { m.Groups[0].Source.Delimiter = `"` }, "groups[0].source.delimiter: "},
		{"sample too large", func(m M) { m.SampleRows = 1001 }, "sample_rows: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := load(t, "segment_job", &attentivev1.SegmentJob{})
			tt.edit(m)
			check(t, m, tt.want)
		})
	}
}

func TestValidateAttributesJob(t *testing.T) {
	t.Parallel()
	m := load(t, "attributes_job", &attentivev1.AttributesJob{})
	m.Source = nil
	m.Origin = nil
	check(t, m, "source: ")
	check(t, m, "origin: ") // all findings together
	check(t, &attentivev1.AttributesJob{}, "template: ")
}

func TestValidateProfile(t *testing.T) {
	t.Parallel()
	type P = *attentivev1.Profile
	set := func(p P, v *structpb.Value) { p.GetAttributes().Values.Fields["x"] = v }
	tests := []struct {
		name string
		edit func(P)
		want string // in the error; valid when empty
	}{
		{"valid", func(P) {}, ""},
		{"no id", func(p P) { p.Id = "" }, "id: must be a UUID in lower case"},
		{"id in upper case", func(p P) { p.Id = strings.ToUpper(p.GetId()) }, "id: must be a UUID in lower case"},
		{"id with braces", func(p P) { p.Id = "{" + p.GetId()[2:] + "}" }, "id: must be"},
		{"id without hyphens", func(p P) { p.Id = strings.Repeat("a", 36) }, "id: must be"},
		{"no operation", func(p P) { p.Operation = nil }, "operation: exactly one"},
		{"no identifiers", func(p P) { p.Identifiers = nil }, "identifiers: at least one"},
		{"empty identifiers", func(p P) { p.Identifiers = &attentivev1.Identifiers{} }, "identifiers: at least one"},
		{"client user id alone", func(p P) { p.Identifiers = &attentivev1.Identifiers{ClientUserId: strings.Repeat("é", 100)} }, ""},
		{"client user id too long", func(p P) { p.Identifiers.ClientUserId = strings.Repeat("é", 101) }, "identifiers.client_user_id: "},
		{"shopify id too long", func(p P) { p.Identifiers.ShopifyId = strings.Repeat("1", 513) }, "identifiers.shopify_id: "},
		{"klaviyo id too long", func(p P) { p.Identifiers.KlaviyoId = strings.Repeat("1", 513) }, "identifiers.klaviyo_id: "},
		{"custom id without name", func(p P) { p.Identifiers.Custom[""] = "1" }, "identifiers.custom: "},
		{"custom id without value", func(p P) { p.Identifiers.Custom["n"] = "" }, "identifiers.custom: "},
		{"phone without plus", func(p P) { p.Identifiers.Phone = "15550100101" }, "identifiers.phone: must be in E.164"},
		{"phone with zero", func(p P) { p.Identifiers.Phone = "+0555010010" }, "identifiers.phone: "},
		{"phone with spaces", func(p P) { p.Identifiers.Phone = "+1 555 010 0101" }, "identifiers.phone: "},
		{"phone too short", func(p P) { p.Identifiers.Phone = "+123456" }, "identifiers.phone: "},
		{"shortest phone", func(p P) { p.Identifiers.Phone = "+2904123" }, ""},
		{"phone too long", func(p P) { p.Identifiers.Phone = "+1234567890123456" }, "identifiers.phone: "},
		{"e-mail in upper case", func(p P) { p.Identifiers.Email = "Ana@acme.example" }, "identifiers.email: "},
		{"e-mail without at", func(p P) { p.Identifiers.Email = "ana.acme.example" }, "identifiers.email: "},
		{"e-mail without domain", func(p P) { p.Identifiers.Email = "ana@" }, "identifiers.email: "},
		{"e-mail with two ats", func(p P) { p.Identifiers.Email = "ana@b@c" }, "identifiers.email: "},
		{"e-mail with a line break", func(p P) { p.Identifiers.Email = "ana@acme.example\n" }, "identifiers.email: "},
		{"no attributes", func(p P) { p.GetAttributes().Values = nil }, "attributes.values: at least one"},
		{"attribute without name", func(p P) { p.GetAttributes().Values.Fields[""] = structpb.NewBoolValue(true) }, "1 to 200 characters"},
		{"longest name", func(p P) {
			p.GetAttributes().Values.Fields[strings.Repeat("é", 200)] = structpb.NewBoolValue(true)
		}, ""},
		{"name too long", func(p P) {
			p.GetAttributes().Values.Fields[strings.Repeat("é", 201)] = structpb.NewBoolValue(true)
		}, "1 to 200 characters"},
		{"null", func(p P) { set(p, structpb.NewNullValue()) }, `attributes.values["x"]: must be a string, number or boolean, not null`},
		{"list", func(p P) { set(p, structpb.NewListValue(&structpb.ListValue{})) }, "not a list"},
		{"object", func(p P) { set(p, structpb.NewStructValue(&structpb.Struct{})) }, "not an object"},
		{"value without kind", func(p P) { set(p, &structpb.Value{}) }, "not null"},
		{"not a number", func(p P) { set(p, structpb.NewNumberValue(math.NaN())) }, "must be finite"},
		{"infinity", func(p P) { set(p, structpb.NewNumberValue(math.Inf(-1))) }, "must be finite"},
		{"name that is a value", func(p P) {
			p.GetAttributes().Values.Fields["ana@acme.example"] = structpb.NewNullValue()
		}, "not shown"},
		{"subscribe by client user id", func(p P) {
			p.Operation = &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}}
			p.Identifiers = &attentivev1.Identifiers{ClientUserId: "1"}
		}, "phone or email is required"},
		{"unsubscribe by client user id", func(p P) {
			p.Operation = &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}}
			p.Identifiers = &attentivev1.Identifiers{ClientUserId: "1"}
		}, "phone or email is required"},
		{"subscribe by e-mail", func(p P) {
			p.Operation = &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}}
			p.Identifiers = &attentivev1.Identifiers{Email: "ana@acme.example"}
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := load(t, "profile_attributes", &attentivev1.Profile{})
			tt.edit(p)
			check(t, p, tt.want)
		})
	}
}

func TestValidateCutsLongLists(t *testing.T) {
	t.Parallel()
	p := load(t, "profile_attributes", &attentivev1.Profile{})
	for i := range 500 {
		p.GetAttributes().Values.Fields[fmt.Sprintf("a%03d", i)] = structpb.NewNullValue()
	}
	err := contract.Validate(p)
	wantFault(t, err, fault.InvalidMessage, `"a000"`, "and 492 more")
}

func TestValidateRefusesOtherMessages(t *testing.T) {
	t.Parallel()
	check(t, &attentivev1.Source{}, "Source is not a message of the contract")
	check(t, nil, "not a message of the contract")
	check(t, &attentivev1.JobEvent{}, "")
}

func TestKindOf(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]contract.Kind{
		"profile_attributes": contract.Attributes, "profile_subscribe": contract.Subscribe, "profile_unsubscribe": contract.Unsubscribe,
	} {
		if got := contract.KindOf(load(t, name, &attentivev1.Profile{})); got != want {
			t.Errorf("KindOf(%s) = %q, want %q", name, got, want)
		}
	}
	if got := contract.KindOf(nil); got != "" {
		t.Errorf("KindOf(nil) = %q, want none", got)
	}
}

// TestValidateProfileAllocates keeps the hot path cheap. It is not parallel:
// allocations are counted for the whole process.
func TestValidateProfileAllocates(t *testing.T) {
	p := load(t, "profile_attributes", &attentivev1.Profile{})
	if n := testing.AllocsPerRun(100, func() {
		if err := contract.Validate(p); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("Validate of a valid profile allocates %v times, want 0", n)
	}
}

// check validates m and compares the outcome; errors must not repeat values.
func check(t testing.TB, m proto.Message, want string) {
	t.Helper()
	err := contract.Validate(m)
	if want == "" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	wantFault(t, err, fault.InvalidMessage, want)
	for _, value := range []string{"acme.example", "555010", "Winback"} {
		if strings.Contains(err.Error(), value) {
			t.Errorf("error %q repeats a value", err)
		}
	}
}

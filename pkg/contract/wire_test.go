package contract_test

import (
	"bytes"
	"strings"
	"testing"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestMessageIsDecoded(t *testing.T) {
	t.Parallel()
	want := load(t, "segment_job", &attentivev1.SegmentJob{})
	msg, err := contract.Message(contract.JobSubject(contract.Segment, want.GetDestination()), "m-1", want)
	if err != nil {
		t.Fatal(err)
	}
	wantHeader := nats.Header{
		"Nats-Msg-Id":        {"m-1"},
		"Content-Type":       {"application/protobuf"},
		"Attentive-Contract": {"1"},
	}
	if diff := cmp.Diff(wantHeader, msg.Header); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	got := &attentivev1.SegmentJob{}
	if err := contract.Decode(msg.Header, msg.Data, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

func TestMessageRefuses(t *testing.T) {
	t.Parallel()
	large := load(t, "segment_job", &attentivev1.SegmentJob{})
	for range 2 {
		large.Groups = append(large.Groups, &attentivev1.Group{Name: "g", Source: &attentivev1.Source{
			Location: &attentivev1.Source_Inline{Inline: make([]byte, 512<<10)}, Format: attentivev1.Format_FORMAT_CSV,
		}})
	}
	_, err := contract.Message(contract.JobSubject(contract.Segment, "acme-segments"), "m", large)
	wantFault(t, err, fault.TooLarge, "SegmentJob", "786432", "object")

	job := load(t, "attributes_job", &attentivev1.AttributesJob{})
	_, err = contract.Message(contract.JobSubject(contract.Expand, "beta"), "m", job)
	wantFault(t, err, fault.InvalidMessage, "attentive.v1.expand.acme-attributes")

	job.Template = ""
	_, err = contract.Message(contract.JobSubject(contract.Expand, "acme-attributes"), "m", job)
	wantFault(t, err, fault.InvalidMessage, "template")
}

func TestDecodeHeaders(t *testing.T) {
	t.Parallel()
	asJSON, asBinary := readFile(t, "attributes_job.json"), readFile(t, "attributes_job.binpb")
	tests := []struct {
		name   string
		header nats.Header
		data   []byte
		want   string // in the error; none when empty
	}{
		{"no headers is protobuf", nil, asBinary, ""},
		{"protobuf", nats.Header{"Content-Type": {"application/protobuf"}}, asBinary, ""},
		{"JSON with a charset", nats.Header{"Content-Type": {"application/json; charset=utf-8"}}, asJSON, ""},
		{"header in lower case", nats.Header{"content-type": {"application/json"}}, asJSON, ""},
		{"JSON without header says what is missing", nil, asJSON, "Content-Type: application/json"},
		{"binary called JSON", jsonHeader(), asBinary, "not valid JSON"},
		{"another type", nats.Header{"Content-Type": {"application/xml"}}, asJSON, "want application/protobuf or application/json"},
		{"no media type", nats.Header{"Content-Type": {"///"}}, asJSON, "not a media type"},
		{"this revision", nats.Header{"Attentive-Contract": {"1"}}, asBinary, ""},
		{"no revision at all", nats.Header{"Attentive-Contract": {"one"}}, asBinary, "Attentive-Contract"},
		{"revision nought", nats.Header{"Attentive-Contract": {"0"}}, asBinary, "Attentive-Contract"},
		{"cut off", nil, asBinary[:len(asBinary)-1], "not valid protobuf"},
		{"empty", nil, nil, "id: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := contract.Decode(tt.header, tt.data, &attentivev1.AttributesJob{})
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantFault(t, err, fault.InvalidMessage, "AttributesJob", tt.want)
		})
	}
}

func TestNewer(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{
		"": false, "1": false, "2": true, "10": true, "99999999999999999999999999": true, "0": false, "-2": false, "two": false,
	}
	for value, want := range tests {
		for _, key := range []string{contract.HeaderRevision, strings.ToLower(contract.HeaderRevision)} {
			if got := contract.Newer(nats.Header{key: {value}}); got != want {
				t.Errorf("Newer(%s: %s) = %v, want %v", key, value, got, want)
			}
		}
	}
	if contract.Newer(nil) {
		t.Error("Newer without headers, want the first revision")
	}
}

func TestDecodeUnknownBinaryField(t *testing.T) {
	t.Parallel()
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)
	otherType := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1)
	segment := load(t, "segment_job", &attentivev1.SegmentJob{})
	profile := load(t, "profile_attributes", &attentivev1.Profile{})
	edit := func(m proto.Message, at func(m proto.Message) proto.Message, unknown []byte) proto.Message {
		m = proto.Clone(m)
		at(m).ProtoReflect().SetUnknown(unknown)
		return m
	}
	self := func(m proto.Message) proto.Message { return m }
	tests := []struct {
		name    string
		message proto.Message
		want    []string
	}{
		{"at the top", edit(segment, self, unknown), []string{"number 99", "the message", "destination"}},
		{"in a list", edit(segment, func(m proto.Message) proto.Message {
			return m.(*attentivev1.SegmentJob).GetGroups()[1].GetSource()
		}, unknown), []string{"number 99", "groups[1].source", "inline, object, url"}},
		{"of another type", edit(segment, self, otherType), []string{"id", "another type"}},
		{"in a profile", edit(profile, self, unknown), []string{"number 99", "identifiers"}},
		{"in a map of a profile", edit(profile, func(m proto.Message) proto.Message {
			return m.(*attentivev1.Profile).GetAttributes().GetValues().GetFields()["age"]
		}, unknown), []string{"number 99", "attributes.values.fields"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			data, err := contract.Encode(tt.message)
			if err != nil {
				t.Fatal(err)
			}
			wantFault(t, contract.Decode(nil, data, tt.message.ProtoReflect().New().Interface()), fault.InvalidMessage, tt.want...)
		})
	}
}

func TestDecodeJSONExplains(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, json string
		want       []string
	}{
		{"misspelt field", "{\n  \"destinatoin\": \"acme\"}", []string{`"destinatoin"`, "the message", "destination, template", "line 2, column 15"}},
		{"misspelt field in a list", `{"groups":[{},{"source":{"fromat":"FORMAT_CSV"}}]}`, []string{`"fromat"`, "groups[1].source", "format"}},
		{"name that is a value", `{"+15550100101":1}`, []string{"unknown field (not shown"}},
		{"number for a string", `{"template":15550100101}`, []string{"template must be a string"}},
		{"string for a bool", `{"requester":{"restricted_pii":"15550100101"}}`, []string{"requester.restricted_pii must be true or false"}},
		{"string for a number", `{"sample_rows":"15550100101x"}`, []string{"sample_rows must be a whole number"}},
		{"too large a number", `{"sample_rows":15550100101}`, []string{"sample_rows", "uint32"}},
		{"fraction", `{"sample_rows":1.5}`, []string{"sample_rows must be a whole number"}},
		{"unknown value of an enum", `{"groups":[{"source":{"format":"CSV 15550100101"}}]}`, []string{"groups[0].source.format must be one of FORMAT_CSV, FORMAT_NDJSON, FORMAT_PARQUET"}},
		{"list of an enum", `{"requester":{"policies":["admin 15550100101"]}}`, []string{"requester.policies[0] must be one of POLICY_DATAGRID_OPERATOR"}},
		{"no base64", `{"groups":[{"source":{"inline":"phone;15550100101"}}]}`, []string{"groups[0].source.inline must be a string in base64"}},
		{"string for an object", `{"campaign":"15550100101"}`, []string{"campaign must be an object"}},
		{"object for a list", `{"groups":{"15550100101":1}}`, []string{"groups must be a list"}},
		{"null in a list", `{"groups":[null]}`, []string{"groups[0] must be an object"}},
		{"field twice", `{"id":"15550100101","id":"2"}`, []string{"id stands there twice"}},
		{"field twice, in both spellings", `{"sampleRows":1,"sample_rows":2}`, []string{"sample_rows stands there twice"}},
		{"two of a oneof", `{"campaign":{"name":"15550100101"},"orchestration":{}}`, []string{"both campaign and orchestration"}},
		{"not an object", `["15550100101"]`, []string{"the message must be an object"}},
		{"two messages", `{}{"id":"15550100101"}`, []string{"more bytes after the end"}},
		{"broken", `{"id":"15550100101`, []string{"not valid JSON", "line 1"}},
		{"comma missing", `{"id":"15550100101" "template":""}`, []string{"not valid JSON"}},
		{"half a surrogate", `{"id":"15550100101\ud800"}`, []string{"not valid proto-JSON"}},
		{"not UTF-8", "{\"id\":\"15550100101\xff\"}", []string{"not UTF-8"}},
		{"empty", "", []string{"not valid JSON"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := contract.Decode(jsonHeader(), []byte(tt.json), &attentivev1.SegmentJob{})
			wantFault(t, err, fault.InvalidMessage, append(tt.want, "decode SegmentJob")...)
			if strings.Contains(err.Error(), "15550100101") {
				t.Errorf("error %q repeats a value", err)
			}
		})
	}
}

func TestDecodeProfileJSONExplains(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, json, want string }{
		{"values are no object", `{"attributes":{"values":["15550100101"]}}`, "attributes.values must be an object"},
		{"map is no object", `{"identifiers":{"custom":["15550100101"]}}`, "identifiers.custom must be an object"},
		{"value of a map", `{"identifiers":{"custom":{"15550100101":15550100101}}}`, "identifiers.custom must be a string"},
		{"field of an empty message", `{"subscribe":{"silent":true}}`, `unknown field "silent" in subscribe; allowed: none`},
		{"row", `{"row":"-15550100101"}`, "row must be a whole number"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := contract.Decode(jsonHeader(), []byte(tt.json), &attentivev1.Profile{})
			wantFault(t, err, fault.InvalidMessage, tt.want)
			if strings.Contains(err.Error(), "15550100101") {
				t.Errorf("error %q repeats a value", err)
			}
		})
	}
}

func TestEncodeIsDeterministic(t *testing.T) {
	t.Parallel()
	values := map[string]any{}
	for name := range strings.SplitSeq("abcdefghijklmnopqrstuvwxyz", "") {
		values[name] = name
	}
	fields, err := structpb.NewStruct(values)
	if err != nil {
		t.Fatal(err)
	}
	p := &attentivev1.Profile{Operation: &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: fields}}}
	first, err := contract.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		again, err := contract.Encode(proto.Clone(p))
		if err != nil || !bytes.Equal(first, again) {
			t.Fatalf("two encodings of one message differ (%v)", err)
		}
	}
	_, err = contract.Encode(&attentivev1.Profile{Id: "15550100101\xff"})
	wantFault(t, err, fault.InvalidMessage, "encode Profile", "UTF-8")
	if strings.Contains(err.Error(), "15550100101") {
		t.Errorf("error %q repeats a value", err)
	}
}

func FuzzDecode(f *testing.F) {
	for i, g := range golden {
		f.Add(i, false, readFile(f, g.name+".binpb"))
		f.Add(i, true, readFile(f, g.name+".json"))
	}
	f.Add(0, true, []byte(`{"groups":[{"source":{"inline":1}}]}`))
	f.Fuzz(func(t *testing.T, which int, asJSON bool, data []byte) {
		m := golden[uint(which)%uint(len(golden))].empty.ProtoReflect().New().Interface()
		var header nats.Header
		if asJSON {
			header = jsonHeader()
		}
		if err := contract.Decode(header, data, m); err != nil {
			if f := fault.Of(err); f.Class != fault.Permanent || f.Reason != fault.InvalidMessage {
				t.Errorf("Decode = %v of class %s, want permanent", err, f.Class)
			}
			if len(err.Error()) > 8<<10 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			return
		}
		encoded, err := contract.Encode(m)
		if err != nil {
			t.Fatalf("encode what was decoded: %v", err)
		}
		again := m.ProtoReflect().New().Interface()
		if err := contract.Decode(nil, encoded, again); err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		if !proto.Equal(m, again) {
			t.Errorf("round trip changed the message")
		}
	})
}

func FuzzParseSubject(f *testing.F) {
	f.Add("attentive.v1.segment.acme")
	f.Add("attentive.v1.profile.acme.subscribe.live")
	f.Add("attentive.v1.dead.segment.acme.unknown")
	f.Fuzz(func(t *testing.T, subject string) {
		a, err := contract.ParseSubject(subject)
		if err != nil {
			return
		}
		dead := contract.DeadSubject(a.Kind, a.Destination, a.Job)
		got, err := contract.ParseSubject(dead)
		if want := a; err != nil || got != want && want.Job != "unknown" {
			t.Errorf("ParseSubject(%q) = %+v, %v, want %+v", dead, got, err, want)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	header := nats.Header{"Content-Type": {"application/protobuf"}, "Attentive-Contract": {"1"}}
	for _, g := range golden {
		data := readFile(b, g.name+".binpb")
		b.Run(g.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if err := contract.Decode(header, data, g.empty.ProtoReflect().New().Interface()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkValidate(b *testing.B) {
	for _, g := range golden {
		m := load(b, g.name, g.empty.ProtoReflect().New().Interface())
		b.Run(g.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := contract.Validate(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

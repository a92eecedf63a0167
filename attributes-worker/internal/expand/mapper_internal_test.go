package expand

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
)

var testJob = uuid.MustParse("0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10")

// mapped is what the rows of a source become, without the ids of profiles.
type mapped struct {
	Profiles []*attentivev1.Profile
	Rejects  []string // "row reason value"
}

func mapAll(t *testing.T, primary config.Identifier, template config.Template, s *attentivev1.Source) (mapped, error) {
	t.Helper()
	opener, err := source.New(source.Config{})
	if err != nil {
		t.Fatal(err)
	}
	reader, err := opener.Open(t.Context(), s)
	if err != nil {
		return mapped{}, err
	}
	d := config.Destination{ID: "acme", Attributes: &config.AttributesSettings{Identifier: primary}}
	m, err := newMapper(testJob, d, template, reader)
	if err != nil {
		return mapped{}, err
	}
	var all mapped
	for {
		row, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		made, err := m.expand(row)
		if err != nil {
			return all, err
		}
		for _, p := range made.profiles {
			if err := contract.Validate(p); err != nil {
				t.Errorf("row %d: %v", row.Number, err)
			}
			p = proto.CloneOf(p) // valid until the next row
			p.Id = ""
			all.Profiles = append(all.Profiles, p)
		}
		if made.reject != "" {
			all.Rejects = append(all.Rejects, fmt.Sprintf("%d %s %.20s", row.Number, made.reject, made.bad))
		}
	}
}

func csv(rows ...string) *attentivev1.Source { return inline(attentivev1.Format_FORMAT_CSV, rows) }

func ndjson(rows ...string) *attentivev1.Source {
	return inline(attentivev1.Format_FORMAT_NDJSON, rows)
}

func inline(format attentivev1.Format, rows []string) *attentivev1.Source {
	return &attentivev1.Source{Format: format, Location: &attentivev1.Source_Inline{Inline: []byte(strings.Join(rows, "\n"))}}
}

func attributes(t *testing.T, row uint64, ids *attentivev1.Identifiers, values map[string]any) *attentivev1.Profile {
	t.Helper()
	s, err := structpb.NewStruct(values)
	if err != nil {
		t.Fatal(err)
	}
	return &attentivev1.Profile{Row: row, Identifiers: ids, Operation: &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: s}}}
}

func optIn(row uint64, ids *attentivev1.Identifiers) *attentivev1.Profile {
	return &attentivev1.Profile{Row: row, Identifiers: ids, Operation: &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}}}
}

func optOut(row uint64, ids *attentivev1.Identifiers) *attentivev1.Profile {
	return &attentivev1.Profile{Row: row, Identifiers: ids, Operation: &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}}}
}

func TestRowsBecomeProfiles(t *testing.T) {
	t.Parallel()
	const number, other = "+14155552671", "+12125552671"
	byPhone := &attentivev1.Identifiers{Phone: number}
	typed := config.Template{
		DefaultRegion: "US", Columns: config.Columns{Phone: "mobile", OptIn: "in"},
		Attributes: []config.Attribute{
			{Column: "color", Name: "Favorite Color", Type: config.String},
			{Column: "points", Name: "points", Type: config.Number},
			{Column: "vip", Name: "VIP", Type: config.Boolean},
		},
	}
	everything := config.Template{Columns: config.Columns{Phone: "mobile"}, EveryColumn: true}
	long := strings.Repeat("x", 101)
	tests := []struct {
		name     string
		primary  config.Identifier
		template config.Template
		source   *attentivev1.Source
		want     mapped
	}{
		{
			"types", config.Phone, typed,
			csv("mobile,in,color,points,vip",
				"(415) 555-2671,,  Deep Red ,007.50,YES",
				number+",,,1e3,0",
				number+",,x,,"),
			mapped{Profiles: []*attentivev1.Profile{
				attributes(t, 1, byPhone, map[string]any{"Favorite Color": "  Deep Red ", "points": 7.5, "VIP": true}),
				attributes(t, 2, byPhone, map[string]any{"points": 1000, "VIP": false}),
				attributes(t, 3, byPhone, map[string]any{"Favorite Color": "x"}),
			}},
		},
		{
			"values that do not fit their type", config.Phone, typed,
			csv("mobile,in,color,points,vip",
				number+",,,lots,", number+",,,NaN,", number+",,,-Inf,", number+",,,1e999,", number+",,,,perhaps", number+",,\xff,,"),
			mapped{Rejects: []string{
				"1 attribute_type lots", "2 attribute_type NaN", "3 attribute_type -Inf", "4 attribute_type 1e999",
				"5 attribute_type perhaps", "6 not_utf8 \xff",
			}},
		},
		{
			"consent follows the attributes", config.Phone, typed,
			csv("mobile,in,color,points,vip", number+",Yes,green,,", number+", OUT ,,,", number+",maybe,green,,", number+",,,,"),
			mapped{
				Profiles: []*attentivev1.Profile{
					attributes(t, 1, byPhone, map[string]any{"Favorite Color": "green"}), optIn(1, byPhone), optOut(2, byPhone),
				},
				Rejects: []string{"3 opt_in_unclear maybe", "4 nothing_to_send "},
			},
		},
		{
			"all identifiers", config.Email,
			config.Template{Columns: config.Columns{Phone: "p", Email: "e", ClientUserID: "c", ShopifyID: "s", KlaviyoID: "k", OptIn: "in"}},
			csv("p,e,c,s,k,in", other+",Ana@Example.com, c-1 ,s-1,k-1,yes"),
			mapped{Profiles: []*attentivev1.Profile{optIn(1, &attentivev1.Identifiers{
				Phone: other, Email: "ana@example.com", ClientUserId: "c-1", ShopifyId: "s-1", KlaviyoId: "k-1",
			})}},
		},
		{
			"only the primary identifier must be usable", config.Email,
			config.Template{Columns: config.Columns{Phone: "p", Email: "e", ClientUserID: "c", ShopifyID: "s", OptIn: "in"}},
			csv("p,e,c,s,in", "12,ana@example.com,,\xff,y", number+",,,,y", number+",ana,,,y", ",ana@example.com,"+long+",,y"),
			mapped{
				Profiles: []*attentivev1.Profile{optIn(1, &attentivev1.Identifiers{Email: "ana@example.com"})},
				Rejects:  []string{"2 missing ", "3 email_invalid ana", "4 client_user_id_too_long " + long[:20]},
			},
		},
		{
			"another identifier that no message may have", config.Phone,
			config.Template{Columns: config.Columns{Phone: "p", ShopifyID: "s", OptIn: "in"}},
			csv("p,s,in", number+","+strings.Repeat("s", 600)+",y", number+",s,y"),
			mapped{
				Profiles: []*attentivev1.Profile{optIn(2, &attentivev1.Identifiers{Phone: number, ShopifyId: "s"})},
				Rejects:  []string{"1 profile_invalid "},
			},
		},
		{
			"every other column, also one that comes late", config.Phone, everything,
			ndjson(`{"mobile":"`+number+`","a":"1"}`, `{"mobile":"`+number+`"}`, `{"b":2.50,"mobile":"`+number+`","a":null,"c":true}`),
			mapped{
				Profiles: []*attentivev1.Profile{
					attributes(t, 1, byPhone, map[string]any{"a": "1"}),
					attributes(t, 3, byPhone, map[string]any{"b": "2.50", "c": "true"}),
				},
				Rejects: []string{"2 nothing_to_send "},
			},
		},
		{
			"more than a message can hold", config.Phone, everything,
			csv("mobile,a,b", number+","+strings.Repeat("a", 250<<10)+","+strings.Repeat("b", 250<<10), number+","+strings.Repeat("a", 250<<10)+","),
			mapped{
				Profiles: []*attentivev1.Profile{attributes(t, 2, byPhone, map[string]any{"a": strings.Repeat("a", 250<<10)})},
				Rejects:  []string{"1 profile_too_large "},
			},
		},
		{
			"named columns that come late", config.Phone, typed,
			ndjson(`{"mobile":"`+number+`","points":1}`, `{"mobile":"`+number+`","vip":true}`, `{"vip":true}`),
			mapped{
				Profiles: []*attentivev1.Profile{
					attributes(t, 1, byPhone, map[string]any{"points": 1}), attributes(t, 2, byPhone, map[string]any{"VIP": true}),
				},
				Rejects: []string{"3 missing "},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := mapAll(t, tt.primary, tt.template, tt.source)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("mapped (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSourcesThatNoTemplateFits(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		template config.Template
		source   *attentivev1.Source
		want     fault.Reason
	}{
		{
			"identifier column missing",
			config.Template{Columns: config.Columns{Phone: "mobile"}, EveryColumn: true},
			csv("phone,a", "+14155552671,1"), fault.ColumnMissing,
		},
		{
			"opt-in column missing",
			config.Template{Columns: config.Columns{Phone: "mobile", OptIn: "in"}},
			csv("mobile,a", "+14155552671,1"), fault.ColumnMissing,
		},
		{
			"attribute column missing",
			config.Template{Columns: config.Columns{Phone: "mobile"}, Attributes: []config.Attribute{{Column: "b", Name: "b"}}},
			csv("mobile,a", "+14155552671,1"), fault.ColumnMissing,
		},
		{
			"a name longer than an attribute's",
			config.Template{Columns: config.Columns{Phone: "mobile"}, EveryColumn: true},
			csv("mobile,"+strings.Repeat("n", 201), "+14155552671,1"), fault.InvalidProfile,
		},
		{
			"a name longer than an attribute's, late",
			config.Template{Columns: config.Columns{Phone: "mobile"}, EveryColumn: true},
			ndjson(`{"mobile":"+14155552671","a":"1"}`, `{"mobile":"+14155552671","`+strings.Repeat("n", 201)+`":"1"}`), fault.InvalidProfile,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := mapAll(t, config.Phone, tt.template, tt.source)
			if f := fault.Of(err); f == nil || f.Class != fault.Permanent || f.Reason != tt.want {
				t.Errorf("error = %v, want a permanent %s", err, tt.want)
			}
		})
	}
}

// The ids of a row's profiles are the same whenever it is expanded, and no other
// profile has them.
func TestProfileIDs(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for _, job := range []uuid.UUID{testJob, uuid.Max} {
		m, again := &mapper{job: job}, &mapper{job: job}
		for row := range uint64(3) {
			for _, what := range []string{"attributes", "consent"} {
				id := m.id(row, what)
				if seen[id] || id != again.id(row, what) {
					t.Errorf("job %s row %d %s: id %s is not its own, or not the same again", job, row, what, id)
				}
				seen[id] = true
			}
		}
	}
}

func TestMapperGuards(t *testing.T) {
	t.Parallel()
	note := []config.Attribute{{Column: "note", Name: "note", Type: config.String}, {Column: "points", Name: "points", Type: config.Number}}
	rows := csv("phone,note,points", "+12125550123,4111 1111 1111 1111,1", "+12125550124,,2", "+12125550125,fine,")
	expand := func(t *testing.T, nulls config.Nulls, attributes []config.Attribute) ([]expanded, error) {
		t.Helper()
		reader := openSource(t, rows)
		d := config.Destination{ID: "acme", Attributes: &config.AttributesSettings{
			Identifier: config.Phone, Nulls: nulls, Sensitive: config.Sensitive{Values: []config.Detector{config.CreditCard}},
		}}
		m, err := newMapper(testJob, d, config.Template{Columns: config.Columns{Phone: "phone"}, Attributes: attributes}, reader)
		if err != nil {
			return nil, err
		}
		var all []expanded
		for {
			row, err := reader.Next()
			if errors.Is(err, io.EOF) {
				return all, nil
			}
			if err != nil {
				t.Fatal(err)
			}
			made, err := m.expand(row)
			if err != nil {
				t.Fatal(err)
			}
			made.profiles = slices.Clone(made.profiles)
			for i, p := range made.profiles { // valid until the next row
				made.profiles[i] = proto.CloneOf(p)
			}
			all = append(all, made)
		}
	}
	for nulls, want := range map[config.Nulls][]string{
		config.SkipNulls:   {"sensitive_data", "points", "note"},
		config.EmptyNulls:  {"sensitive_data", "note points", "note"},
		config.RejectNulls: {"sensitive_data", "attribute_missing", "attribute_missing"},
	} {
		all, err := expand(t, nulls, note)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, row := range all {
			if row.bad != nil {
				t.Errorf("%s: the value %q is kept", nulls, row.bad)
			}
			names := string(row.reject)
			if row.reject == "" {
				names = strings.Join(slices.Sorted(maps.Keys(row.profiles[0].GetAttributes().GetValues().GetFields())), " ")
			}
			got = append(got, names)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", nulls, diff)
		}
	}
	_, err := expand(t, config.SkipNulls, []config.Attribute{{Column: "note", Name: "Social Security", Type: config.String}})
	if f := fault.Of(err); f == nil || f.Reason != fault.SensitiveData {
		t.Errorf("a column for sensitive data: %v, want it refused", err)
	}
}

func openSource(t *testing.T, s *attentivev1.Source) *source.Reader {
	t.Helper()
	opener, err := source.New(source.Config{})
	if err != nil {
		t.Fatal(err)
	}
	reader, err := opener.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return reader
}
